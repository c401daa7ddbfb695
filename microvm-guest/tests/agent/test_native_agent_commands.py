"""Commands run by the real agent: streams, ends, surroundings."""

import os
import pwd
import signal

import pytest
import trio

from microvm.abc import TtySize
from microvm.errors import GuestError

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root becomes another user")


def sh(text, *arguments):
    return ["sh", "-c", text, "sh", *arguments]


async def ended(pid):
    """Wait for a process that is no child of ours to end."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


# --- streams and ends ----------------------------------------------------------------------


async def test_the_streams_are_apart_and_the_exit_code_is_exact(agent):
    async with agent.client() as client:
        result = await client.run(sh("echo out; echo err >&2; exit 7"))
        assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 7)


@pytest.mark.parametrize("code", [0, 1, 126, 127, 128, 255])
async def test_every_exit_code_comes_through(agent, code):
    async with agent.client() as client:
        assert (await client.run(sh(f"exit {code}"))).exit_code == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, 64])
async def test_an_end_by_a_signal_is_told_as_one(agent, number):
    async with agent.client() as client:
        result = await client.run(sh(f"kill -{int(number)} $$"))
        assert (result.exit_code, result.signal) == (None, number)


async def test_bytes_pass_as_they_are_in_both_directions(agent):
    data = os.urandom(20 * 1024 * 1024)
    async with agent.client() as client:
        result = await client.run(["cat"], stdin=data)
        assert result.stdout == data


async def test_both_outputs_are_complete_though_the_command_ends_at_once(agent):
    text = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2"
    async with agent.client() as client:
        result = await client.run(sh(text))
        assert (len(result.stdout), len(result.stderr)) == (3_000_000, 2_000_000)


async def test_no_stdin_is_an_empty_one(agent):
    async with agent.client() as client:
        assert (await client.run(["cat"])).stdout == b""


async def test_a_command_may_leave_stdin_unread(agent):
    async with agent.client() as client:
        assert (await client.run(["true"], stdin=bytes(5_000_000))).success
        assert (await client.run(sh("head -c 3"), stdin=b"x" * 5_000_000)).stdout == b"xxx"


async def test_a_command_that_closes_its_stdin_breaks_the_stream_to_it(agent):
    async with agent.client() as client, client.spawn(sh("exec <&-; echo closed; sleep 1000")) as p:
        assert await p.stdout.receive_some() == b"closed\n"
        with pytest.raises(trio.BrokenResourceError):
            await p.stdin.send_all(bytes(5_000_000))


async def test_stdin_flows_while_output_does(agent):
    async with agent.client() as client, client.spawn(["cat"]) as process:
        for number in range(50):
            line = b"%d\n" % number
            await process.stdin.send_all(line)
            assert await process.stdout.receive_some() == line
        await process.stdin.aclose()
        assert (await process.wait()).success


async def test_an_unread_command_holds_up_nobody_else(agent):
    async with agent.client() as client, client.spawn(["cat", "/dev/zero"]) as process:
        for _ in range(20):
            assert (await client.run(["echo", "x"])).stdout == b"x\n"
        assert len(await process.stdout.receive_some()) > 0


async def test_a_process_left_behind_with_the_pipe_does_not_hold_up_the_end(agent):
    async with agent.client() as client:
        result = await client.run(sh("sleep 1000 & echo $!"))
        assert result.success
        left = int(result.stdout)
        os.kill(left, signal.SIGKILL)
        await ended(left)


async def test_a_process_left_behind_that_prints_for_ever_does_not_either(agent):
    async with agent.client() as client:
        result = await client.run(sh("yes & echo $! >&2; exec sleep 0.05"))
        assert result.success
        await ended(int(result.stderr))  # SIGPIPE: the agent reads it no more


async def test_many_commands_run_at_once_and_none_is_left(agent):
    results = {}

    async def one(client, number):
        data = b"%d " % number * 10_000
        results[number] = (await client.run(["cat"], stdin=data)).stdout == data

    async with agent.client() as client:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, client, number)
        assert results == dict.fromkeys(range(200), True)
        assert (await client.status())["commands"] == 0


@pytest.mark.slow
async def test_one_command_more_than_the_agent_allows_is_refused_as_busy(plain_agent):
    async with plain_agent.client() as client, trio.open_nursery() as nursery:
        limit = (await client.wait_hello()).max_commands
        started = 0
        all_started = trio.Event()

        async def one():
            nonlocal started
            async with client.spawn(["cat"]):
                started += 1
                if started == limit:
                    all_started.set()
                await trio.sleep_forever()

        for _ in range(limit):
            nursery.start_soon(one)
        await all_started.wait()
        with pytest.raises(GuestError, match="As many commands run as the agent allows"):
            await client.run(["true"])
        nursery.cancel_scope.cancel()


# --- signals -------------------------------------------------------------------------------


async def test_a_signal_reaches_the_whole_process_group(agent):
    async with agent.client() as client, client.spawn(sh("sleep 1000 & echo $!; wait")) as process:
        child = int(await process.stdout.receive_some())
        await process.send_signal(signal.SIGTERM)
        assert (await process.wait()).signal == signal.SIGTERM
        await ended(child)


async def test_a_signal_can_be_handled(agent):
    async with (
        agent.client() as client,
        client.spawn(sh("trap 'exit 3' INT; echo ready; while :; do sleep 0.01; done")) as process,
    ):
        await process.stdout.receive_some()
        await process.send_signal(signal.SIGINT)
        assert (await process.wait()).exit_code == 3


async def test_commands_start_with_no_signal_blocked_or_ignored(agent):
    async with agent.client() as client:
        status = (await client.run(["cat", "/proc/self/status"])).stdout.decode()
        masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
        # 32 to 34 are libc's own, out of any program's reach; glibc's posix_spawn, by which this
        # test may have started the agent, leaves them ignored.
        ours = ~(0b111 << 31)
        assert {int(masks[name], 16) & ours for name in ("SigBlk", "SigIgn")} == {0}


async def test_letting_go_kills_what_job_control_put_in_groups_of_its_own(agent):
    text = "set -m; sleep 1000 & echo $!; wait"
    async with agent.client() as client:
        async with client.spawn(sh(text), tty=TtySize()) as process:
            job = int(await process.stdout.receive_some())
            assert os.getpgid(job) == job
        await client.ping()
        await ended(job)


# --- surroundings --------------------------------------------------------------------------


async def test_the_default_directory_is_the_root_and_another_can_be_asked_for(agent, tmp_path):
    async with agent.client() as client:
        assert (await client.run(["pwd"])).stdout == b"/\n"
        assert (await client.run(["pwd"], cwd=str(tmp_path))).stdout.decode() == f"{tmp_path}\n"


async def test_variables_are_added_to_the_agents_own_and_win_over_them(agent):
    async with agent.client() as client:
        text = 'echo "$INHERITED $HOME $NEW"'
        assert (await client.run(sh(text))).stdout == b"yes / \n"
        env = {"NEW": "a=b", "HOME": "/elsewhere"}
        assert (await client.run(sh(text), env=env)).stdout == b"yes /elsewhere a=b\n"


async def test_the_program_is_looked_up_on_the_commands_own_path(agent, tmp_path):
    program = tmp_path / "special"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    async with agent.client() as client:
        env = {"PATH": f"/nonexistent:{tmp_path}:/bin"}
        assert (await client.run(["special"], env=env)).stdout == b"found\n"


async def test_arguments_pass_as_they_are(agent):
    arguments = ["", " ", "a\nb", "caf\udce9", "*", "é"]
    async with agent.client() as client:
        result = await client.run(["printf", "<%s>", *arguments])
        expected = "".join(f"<{text}>" for text in arguments)
        assert result.stdout == expected.encode("utf-8", "surrogateescape")


async def test_a_request_as_large_as_a_frame_passes(agent):
    big = "x" * 60_000
    async with agent.client() as client:
        assert (await client.run(["printf", "%s", big])).stdout == big.encode()
        many = [""] * 14_000
        assert (await client.run([*sh("echo $#"), *many])).stdout == b"14000\n"


async def test_no_descriptor_but_stdio_is_open_in_a_command(agent):
    async with agent.client() as client:
        result = await client.run(["ls", "/proc/self/fd"], stdin=b"x")
        assert result.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3: the directory being listed
        async with client.spawn(["cat"]):
            assert (await client.run(["ls", "/proc/self/fd"])).stdout == result.stdout


async def test_a_command_has_the_descriptor_limit_that_the_agent_was_given(agent):
    async with agent.client() as client:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert int((await client.run(sh("ulimit -n"))).stdout) == soft


async def test_a_command_leads_a_session_of_its_own(agent):
    async with agent.client() as client:
        fields = (await client.run(sh("cat /proc/$$/stat"))).stdout.rsplit(b")")[-1].split()
        pgrp, session = int(fields[2]), int(fields[3])
        assert pgrp == session
        assert session not in (os.getsid(0), 0)


# --- users ---------------------------------------------------------------------------------


@needs_root
async def test_a_user_by_name_brings_its_groups_and_home(agent):
    async with agent.client() as client:
        text = 'echo "$(id -u):$(id -g):$HOME:$USER:$LOGNAME"'
        nobody = pwd.getpwnam("nobody")
        expected = f"{nobody.pw_uid}:{nobody.pw_gid}:{nobody.pw_dir}:nobody:nobody\n"
        assert (await client.run(sh(text), user="nobody")).stdout.decode() == expected
        groups = (await client.run(["id", "-G"], user="nobody")).stdout.decode().split()
        assert [int(g) for g in groups] == os.getgrouplist("nobody", nobody.pw_gid)


@needs_root
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("1234567", "1234567:1234567"),
        ("1234567:89", "1234567:89"),
        ("nobody:daemon", "65534:1"),
        ("0", "0:0"),
    ],
)
async def test_a_user_by_number_and_a_group_after_a_colon(agent, user, expected):
    async with agent.client() as client:
        result = await client.run(sh('echo "$(id -u):$(id -g)"'), user=user)
        assert result.stdout.decode().strip() == expected


@needs_root
async def test_another_user_has_no_way_back(agent):
    async with agent.client() as client:
        status = (await client.run(["cat", "/proc/self/status"], user="nobody")).stdout.decode()
        ids = {name: line.split() for name, line in (x.split(":", 1) for x in status.splitlines())}
        assert set(ids["Uid"]) == {"65534"}
        assert "0" not in ids["Groups"]


@pytest.mark.parametrize(
    "user", ["nosuchuser", "4294967295", "-1", "nobody:nosuchgroup", "x" * 500]
)
async def test_a_user_that_is_not_there_is_told(agent, user):
    async with agent.client() as client:
        with pytest.raises(GuestError, match="There is no user"):
            await client.run(["true"], user=user)


# --- what can't be started -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "options", "match"),
    [
        (["nope"], {}, "Can't run nope: No such file"),
        (["/nope/nope"], {}, "Can't run /nope/nope: No such file"),
        (["/etc/passwd"], {}, "Can't run /etc/passwd: Permission denied"),
        (["/etc"], {}, "Can't run /etc: Permission denied"),
        (["true"], {"cwd": "/nope"}, "Can't enter /nope: No such file"),
        (["true"], {"cwd": "/etc/passwd"}, "Can't enter /etc/passwd: Not a directory"),
        (["true"], {"env": {"PATH": "/nope"}}, "Can't run true: No such file"),
        (["x" * 5000], {}, "Can't run xxx"),
    ],
)
async def test_what_cannot_be_started_is_told_with_the_kernels_reason(agent, argv, options, match):
    async with agent.client() as client:
        with pytest.raises(GuestError, match=match):
            await client.run(argv, **options)
        assert (await client.run(["true"])).success
        assert (await client.status())["commands"] == 0


async def test_a_file_that_is_no_program_is_told(agent, tmp_path):
    program = tmp_path / "empty"
    program.write_bytes(b"\x00not a program")
    program.chmod(0o755)
    async with agent.client() as client:
        with pytest.raises(GuestError, match="Exec format error"):
            await client.run([str(program)])


# --- the agent itself ----------------------------------------------------------------------


async def test_orphans_are_reaped(agent):
    async with agent.client() as client:
        me = (await client.status())["pid"]
        await client.run(sh("(true &); (sleep 0.01 &) ; exit 0"))
        orphan = int((await client.run(sh("(sleep 0 & echo $!)"))).stdout)
        await ended(orphan)
        await client.ping()
        text = (
            f"grep -l '^PPid:.{me}$' /proc/[0-9]*/status 2>/dev/null | xargs -r grep -l '(zombie)'"
        )
        with trio.fail_after(20):  # one may have ended this moment
            while (await client.run(sh(text))).stdout:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_its_hello_tells_what_it_is(agent):
    from microvm_guest.agent import build_id

    async with agent.client() as client:
        hello = await client.wait_hello()
        assert hello.build == build_id()
        assert hello.kernel == os.uname().release
        assert hello.boot_ns > 0


async def test_its_status_counts(agent):
    async with agent.client() as client, client.spawn(["cat"]):
        status = await client.status()
        assert status["commands"] == 1
        assert status["connections"] == 1
        assert 0 < status["mem_available_kib"] <= status["mem_total_kib"]
        assert status["uptime_ms"] > 0


async def test_it_does_not_touch_a_clock_that_is_not_its_own(agent):
    import time

    async with agent.client() as client:
        await client.set_clock(1)
        await client.ping()
        assert time.time() > 1_600_000_000


async def test_its_own_connection_loss_kills_its_commands(agent):
    async with agent.client() as client, client.spawn(sh("echo $$; sleep 1000")) as process:
        pid = int(await process.stdout.receive_some())
        await trio.aclose_forcefully(client._stream)
        await ended(pid)


async def test_a_shutdown_ends_commands_and_agent(agent):
    async with agent.client() as client:
        text = "trap 'echo bye; read x; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
        async with client.spawn(sh(text)) as process:
            await process.stdout.receive_some()
            await client.shutdown()
            with pytest.raises(GuestError, match="going down"):
                await client.run(["true"])
            assert await process.stdout.receive_some() == b"bye\n"
            await process.stdin.send_all(b"go\n")
            assert (await process.wait()).exit_code == 5


async def test_a_shutdown_kills_who_does_not_listen(agent):
    async with agent.client() as client, client.spawn(sh("trap '' TERM; echo $$; sleep 9")) as p:
        pid = int(await p.stdout.receive_some())
        await client.shutdown()
        await ended(pid)
