"""Guests that mean no good: each costs a typed error in bounded time, and nothing else.

The first half boots a program in place of the agent, which acts out a script of steps; see
hostile_agent.c.
"""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from microvm import (
    BootError,
    BootSource,
    GuestError,
    GuestGone,
    GuestNotReady,
    GuestRefused,
    Machine,
    MachineConfig,
    OutcomeReason,
)
from microvm.errors import GuestProtocolError
from microvm_guest.image import default_image
from microvm_guest.image.cpio import CharDevice, Directory, Entry, File, archive
from microvm_guest.ports import HOST_PORT
from microvm_guest.protocol.frames import Frame, FrameType
from microvm_guest.testing import hello_payload

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

MIB = 1024 * 1024
FIRST = 1
"""The stream of a host's first command."""


# --- scripts ---------------------------------------------------------------------------------


def step(kind: bytes, count: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("<cII", kind, count, len(payload)) + payload


def say(text: bytes, times: int = 1) -> bytes:
    return step(b"P", times, text)


DIAL = step(b"D", HOST_PORT)
HANG_UP = step(b"C")
REBOOT = step(b"R")
EXIT = step(b"X")


def send(data: bytes, times: int = 1) -> bytes:
    return step(b"S", times, data)


def frame(kind: FrameType, stream: int = 0, payload: bytes = b"") -> bytes:
    return Frame(kind, stream, payload).encode()


HELLO = frame(FrameType.HELLO, payload=hello_payload())
STARTED = frame(FrameType.STARTED, FIRST, struct.pack("<I", 42))
TAKE_RUN = DIAL + send(HELLO) + step(b"W", FrameType.RUN) + send(STARTED)
"""What an agent does up to the moment its first command runs."""

Scripted = Callable[..., MachineConfig]
Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def scripted(hostile_agent: bytes, tmp_path: Path) -> Scripted:
    """The description of a machine whose process 1 acts out these steps."""

    def make(*steps: bytes, ready_within_s: float = 60) -> MachineConfig:
        initrd = tmp_path / "initrd.cpio"
        entries: list[Entry] = [
            Directory("dev"),
            CharDevice("dev/console", 5, 1),
            File("init", hostile_agent, mode=0o755),
            File("script", b"".join(steps)),
        ]
        initrd.write_bytes(archive(entries))
        boot = BootSource(kernel=default_image().kernel, initrd=initrd)
        return MachineConfig(mem_size_mib=64, boot=boot, ready_within_s=ready_within_s)

    return make


class PeakMemory:
    """The most memory this process has had since, above what it had then."""

    def __init__(self) -> None:
        # proc(5): 5 sets the peak back to what is resident now
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()

    @staticmethod
    def _peak() -> int:
        words = Path("/proc/self/status").read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024

    @property
    def growth(self) -> int:
        return self._peak() - self._before - guest_pages()


def guest_pages() -> int:
    """What the guest itself has touched, where its memory is this process's own: on KVM."""
    resident = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Size":
            size = int(rest.split()[0])
        elif name == "Rss" and size >= 40 * 1024:
            resident += int(rest.split()[0]) * 1024
    return resident


# --- before it is ready ----------------------------------------------------------------------


async def boot_error(config: MachineConfig) -> BootError:
    async with Machine(config) as machine:
        with pytest.raises(BootError) as caught:
            await machine.wait_ready()
    return caught.value


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="never calls"),
        pytest.param([DIAL], id="calls and says nothing"),
        pytest.param([DIAL, send(HELLO[:30])], id="says half a hello"),
    ],
)
async def test_silence_is_not_ready_in_bounded_time_with_what_it_printed(
    scripted: Scripted, steps: list[bytes], slower: int
) -> None:
    bound_s = 2 * slower
    config = scripted(say(b"I am up\n"), *steps, say(b"and wait\n"), ready_within_s=bound_s)
    error = await boot_error(config)
    assert isinstance(error, GuestNotReady)
    assert error.console[-2:] == ("I am up", "and wait")
    assert f"within {bound_s} s" in str(error)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        pytest.param(b"\xff" * 65536, "0xff", id="garbage"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", "0x32", id="another protocol"),
        pytest.param(struct.pack("<IBBHI", 0xFFFFFFFF, 1, 0, 0, 0), "4294967295", id="4 GiB"),
        pytest.param(STARTED, "STARTED", id="no hello first"),
        pytest.param(
            frame(FrameType.HELLO, payload=hello_payload(major=9)), "microvm image build", id="9.0"
        ),
    ],
)
async def test_what_is_no_greeting_is_refused_at_once(
    scripted: Scripted, sent: bytes, words: str
) -> None:
    error = await boot_error(scripted(say(b"here it comes\n"), DIAL, send(sent)))
    assert not isinstance(error, GuestNotReady)
    assert isinstance(error.__cause__, GuestProtocolError)
    assert words in str(error)
    assert "here it comes" in error.console


async def test_hanging_up_before_a_greeting_is_a_boot_error(scripted: Scripted) -> None:
    error = await boot_error(scripted(DIAL, HANG_UP))
    assert isinstance(error.__cause__, GuestGone)


async def test_an_agent_that_ends_before_it_calls_is_told_by_the_panic(scripted: Scripted) -> None:
    error = await boot_error(scripted(say(b"goodbye\n"), EXIT))
    assert "Attempted to kill init" in str(error)


# --- in mid-command --------------------------------------------------------------------------


async def test_garbage_in_mid_command_is_told_to_it_and_to_every_later_one(
    scripted: Scripted,
) -> None:
    async with Machine(scripted(TAKE_RUN, send(b"\xff" * 100))) as machine:
        for _ in range(2):
            with pytest.raises(GuestProtocolError):
                await machine.run(["true"])
        assert machine.outcome is None
        assert (await machine.stop()).reason is OutcomeReason.STOPPED


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(FrameType.STDOUT, FIRST + 1, b"x"), id="a stream never opened"),
        pytest.param(frame(FrameType.STARTED, FIRST, bytes(4)), id="started twice"),
        pytest.param(frame(FrameType.EXIT, FIRST, bytes(8)), id="an end without ends of file"),
        pytest.param(frame(FrameType.PONG, payload=bytes(8)), id="a pong nobody asked for"),
        pytest.param(
            frame(FrameType.WINDOW, FIRST, struct.pack("<II", 0, 0xFFFFFFFF)), id="too much credit"
        ),
    ],
)
async def test_frames_out_of_turn_are_as_garbage(scripted: Scripted, sent: bytes) -> None:
    async with Machine(scripted(TAKE_RUN, send(sent))) as machine:
        with pytest.raises(GuestProtocolError):
            await machine.run(["true"])


async def test_output_beyond_its_window_is_a_violation_that_costs_no_more_than_the_window(
    scripted: Scripted,
) -> None:
    output = frame(FrameType.STDOUT, FIRST, bytes(65536))
    async with Machine(scripted(TAKE_RUN, send(output, times=2048))) as machine:
        await machine.wait_ready()
        peak = PeakMemory()
        async with machine.spawn(["true"]) as process:
            with pytest.raises(GuestProtocolError):
                await process.wait()
        assert peak.growth < 16 * MIB


async def test_half_a_frame_and_silence_can_be_cancelled(scripted: Scripted) -> None:
    output = frame(FrameType.STDOUT, FIRST, b"hello")
    async with Machine(scripted(TAKE_RUN, send(output + output[:15]))) as machine:
        async with machine.spawn(["true"]) as process:
            assert await process.stdout.receive_some() == b"hello"
            with trio.move_on_after(0.1) as waited:
                await process.wait()
        assert waited.cancelled_caught


async def test_a_connection_closed_in_mid_command_is_gone_though_the_machine_runs(
    scripted: Scripted,
) -> None:
    async with Machine(scripted(TAKE_RUN, say(b"enough\n"), HANG_UP)) as machine:
        with pytest.raises(GuestGone) as caught:
            await machine.run(["true"])
        assert machine.outcome is None
    assert "enough" in caught.value.console


@pytest.mark.parametrize(
    ("end", "reason", "words"),
    [
        (REBOOT, OutcomeReason.RESET, "rebooted"),
        (EXIT, OutcomeReason.PANIC, "Attempted to kill init"),
    ],
)
async def test_a_machine_that_ends_in_mid_command_is_gone_with_its_outcome(
    scripted: Scripted, end: bytes, reason: OutcomeReason, words: str
) -> None:
    async with Machine(scripted(TAKE_RUN, say(b"enough\n"), end)) as machine:
        with pytest.raises(GuestGone, match=words) as caught:
            await machine.run(["true"])
        assert (await machine.wait()).reason is reason
    assert "enough" in caught.value.console


@pytest.mark.parametrize(
    "agrees",
    [
        pytest.param(b"", id="does not answer"),
        pytest.param(frame(FrameType.SHUTDOWN), id="agrees and does not"),
    ],
)
async def test_a_guest_that_does_not_end_when_asked_is_ended(
    scripted: Scripted, agrees: bytes
) -> None:
    steps = [DIAL, send(HELLO), step(b"W", FrameType.SHUTDOWN), send(agrees)]
    async with Machine(scripted(*steps)) as machine:
        await machine.wait_ready()
        assert (await machine.stop()).reason is OutcomeReason.STOPPED


def test_the_command_line_says_so_too_and_lets_nothing_of_the_guests_reach_the_terminal(
    scripted: Scripted, cli: Cli
) -> None:
    boot = scripted(say(b"\x1b[2J\x1b]0;owned\x07 hello\n"), DIAL, send(b"\x1b[2J" * 100)).boot
    assert boot is not None
    done = cli("run", "--kernel", str(boot.kernel), "--initrd", str(boot.initrd), "--", "true")
    assert done.returncode == 125
    assert b"broke the protocol" in done.stderr
    assert b"owned\\x07 hello" in done.stderr
    assert b"\x1b" not in done.stderr
    assert b"Traceback" not in done.stderr


# --- floods ----------------------------------------------------------------------------------


async def test_a_console_flood_is_kept_within_bounds_and_made_visible(scripted: Scripted) -> None:
    evil = b"\x1b]0;owned\x07\x1b[2J\x9b\xe2\x80\xae" * 1000
    async with Machine(scripted(say(evil, 25), REBOOT)) as machine:
        peak = PeakMemory()
        with pytest.raises(BootError) as caught:
            await machine.wait_ready()
        assert peak.growth < 8 * MIB
    shown = "".join(caught.value.console)
    assert "\\x1b]0;owned\\x07" in shown
    assert shown.isprintable()
    assert len(shown) < 64 * 1024


async def test_output_beyond_the_bound_kills_the_command_and_nothing_else() -> None:
    async with Machine() as machine:
        await machine.run(["true"])
        peak = PeakMemory()
        with pytest.raises(GuestError, match="printed more than 1000000 bytes on stdout"):
            await machine.run(["yes", "no"], max_output_bytes=1_000_000)
        still_there = ["sh", "-c", "grep -lx yes /proc/[0-9]*/comm"]
        assert (await machine.run(still_there)).stdout == b""
        assert peak.growth < 32 * MIB


async def test_output_that_nobody_reads_is_held_back_in_the_guest() -> None:
    async with Machine() as machine:
        await machine.run(["true"])
        peak = PeakMemory()
        async with machine.spawn(["yes"]) as process:
            assert await process.stdout.receive_some(2) == b"y\n"
            for _ in range(50):
                await machine.run(["true"], check=True)
        assert peak.growth < 32 * MIB


DIALS = 2000
LISTENED, DEAF = 9000, 9001


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_thousands_of_connections_cost_the_host_a_bounded_number_of_descriptors(
    hostile_agent: bytes, vsock_peer: bytes
) -> None:
    async with Machine() as machine:
        for name, program in (("hostile", hostile_agent), ("peer", vsock_peer)):
            line = f"cat > /tmp/{name} && chmod +x /tmp/{name}"
            await machine.run(["sh", "-c", line], stdin=program, check=True)
        before = open_descriptors()
        async with machine.listen(LISTENED):
            for port in (DEAF, LISTENED):
                dial = ["/tmp/hostile", "dial", str(port), str(DIALS)]
                async with machine.spawn(dial) as process:
                    taken, refused = map(int, (await process.stdout.receive_some()).split())
                    assert taken + refused == DIALS
                    assert taken == (128 if port == LISTENED else 0)
                    # two each, and a few that are the machine's own, such as for its clock
                    assert open_descriptors() - before <= 2 * 128 + 8
                    with pytest.raises(GuestRefused):
                        await machine.connect(DEAF)
        async with machine.spawn(["/tmp/peer", "echo", "7000"]) as peer:
            assert await peer.stdout.receive_some() == b"listening\n"
            async with await machine.connect(7000) as stream:
                await stream.send_all(b"still there?")
                assert await stream.receive_some() == b"still there?"
        await machine.run(["true"], check=True)
