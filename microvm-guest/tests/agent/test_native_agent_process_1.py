"""The real agent as process 1, of namespaces rather than of a machine.

In a PID namespace reboot(2) ends process 1 by a signal that tells which kind it was: SIGHUP for a
reset, SIGINT for a power-off (reboot(2), "Behavior inside PID namespaces").
"""

import signal
import socket
import subprocess
from contextlib import asynccontextmanager

import pytest
import trio

from microvm_guest.client import open_client

UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--uts", "--ipc", "--net"]


def allowed():
    try:
        return subprocess.run([*UNSHARE, "--fork", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not allowed(), reason="process 1 is tested in user namespaces, which are not allowed here"
)


class Guest:
    """The namespaces' process 1, seen from outside them."""

    client = None

    def __init__(self, agent, sock):
        self.process = subprocess.Popen(
            [*UNSHARE, "--fork", agent.program, "--connected-fd", str(sock.fileno())],
            pass_fds=[sock.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/bin:/usr/bin", "LEFT_BY_THE_KERNEL": "1"},
        )

    async def ended(self):
        with trio.fail_after(30):
            return await trio.to_thread.run_sync(self.process.wait)


@asynccontextmanager
async def guest(agent):
    ours, theirs = socket.socketpair()
    it = Guest(agent, theirs)
    theirs.close()
    try:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with open_client(stream) as it.client:
            yield it
        await it.ended()
    finally:
        it.process.kill()
        it.process.wait()


async def output(it, text):
    return (await it.client.run(["sh", "-c", text], check=True)).stdout.decode()


async def test_it_is_process_1_and_says_so(plain_agent):
    async with guest(plain_agent) as it:
        assert (await it.client.status())["pid"] == 1


async def test_it_mounts_what_programs_expect(plain_agent):
    async with guest(plain_agent) as it:
        mounts = [line.split() for line in (await output(it, "cat /proc/mounts")).splitlines()]
        last = {fields[1]: fields[2] for fields in mounts}
        assert last["/proc"] == "proc"
        assert last["/sys"] == "sysfs"
        for directory in ("/tmp", "/run", "/dev/shm"):
            assert last[directory] == "tmpfs"
        assert await output(it, "stat -c %a /tmp /dev/shm") == "1777\n1777\n"


async def test_it_names_the_host_and_brings_up_loopback(plain_agent):
    async with guest(plain_agent) as it:
        assert await output(it, "hostname") == "microvm\n"
        assert int(await output(it, "cat /sys/class/net/lo/flags"), 16) & 1


async def test_its_environment_is_its_own(plain_agent):
    async with guest(plain_agent) as it:
        names = {line.split("=")[0] for line in (await output(it, "env")).splitlines()}
        assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "HOME"}
        assert await output(it, "echo $HOME; umask; pwd") == "/root\n0022\n/\n"


async def test_it_reaps_what_commands_leave_behind(plain_agent):
    async with guest(plain_agent) as it:
        await output(it, "for i in 1 2 3 4 5; do (sleep 0 &); done")
        orphan = (await output(it, "sleep 1000 >/dev/null 2>&1 & echo $!")).strip()
        assert await output(it, f"grep PPid /proc/{orphan}/status") == "PPid:\t1\n"
        await output(it, f"kill -9 {orphan}")
        states = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
        while await output(it, f"ls -d /proc/{orphan} 2>/dev/null | wc -l") != "0\n":
            pass
        assert await output(it, states) == "0\n"


@pytest.mark.parametrize(("power_off", "expected"), [(False, signal.SIGHUP), (True, signal.SIGINT)])
async def test_a_shutdown_ends_the_guest_as_asked(plain_agent, power_off, expected):
    async with guest(plain_agent) as it:
        await it.client.shutdown(power_off=power_off)
        assert await it.ended() == -expected


async def test_a_shutdown_ends_daemons_too(plain_agent):
    async with guest(plain_agent) as it:
        await output(it, "trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 &")
        await it.client.shutdown()
        assert await it.ended() == -signal.SIGHUP


async def test_the_guests_own_poweroff_and_reboot_commands_are_heeded(plain_agent):
    for sent, expected in ((signal.SIGUSR2, signal.SIGINT), (signal.SIGTERM, signal.SIGHUP)):
        async with guest(plain_agent) as it:
            await it.client.run(["sh", "-c", f"kill -{int(sent)} 1"])  # and may not live to say so
            assert await it.ended() == -expected
