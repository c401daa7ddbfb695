"""`DaemonRun`: one life of the OpenVPN daemon in the guest.

The thin shell around `session`, which decides. The daemon reads its configuration from its standard
input and dials our management socket in the guest, which is in a directory of root's; both are
streams through the agent, so that nothing secret is in a file, on a command line or in a log.
Behind that socket the agent dials a vsock port of ours, as any program of the guest could: it is
another at each start, chosen by chance, nobody but the agent is told which, and it is taken down
when the first has come. Who was first had to be root, or to guess one port among 2^31 within the
second or two in which the daemon starts.
Whatever it takes long to answer (a person's code, a name to resolve, a route) is done beside the
reading, so that a flood or a silence of the daemon's holds up nothing.

Long, since its tasks share the state of one run.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import attrs
import trio

from microvm.console import visible_text
from microvm.errors import ConfigError, GuestError, GuestGone, MicrovmError
from microvm.forwards.addresses import LOOPBACK, TcpAddress, UnixAddress
from microvm.forwards.host_ports import listen_unguessed
from microvm_guest._tasks import serving
from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.effective import MANAGEMENT, effective_config
from microvm_guest.openvpn.errors import ManagementError, VpnFailed
from microvm_guest.openvpn.management import ManagementParser, command
from microvm_guest.openvpn.places import Found, Places
from microvm_guest.openvpn.states import ENDED, VpnReason, VpnState
from microvm_guest.openvpn.status import LogBudget, VpnStatus
from microvm_guest.openvpn.telling import PER_S, Telling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio.abc import HalfCloseableStream, ReceiveStream

    from microvm import Machine
    from microvm.abc import GuestProcess
    from microvm.host_clocks import ClockJump
    from microvm_guest.openvpn.config import OpenVpnConfig
    from microvm_guest.openvpn.credentials import Challenge, Credentials
    from microvm_guest.provisioners.openvpn import OpenVpnLink

log = logging.getLogger("microvm.vpn")

OUTBOUND_PORT: Final = 1082
"""On the guest's loopback: the way to the VPN's server, in a guest without a network."""
TERM_WITHIN_S: Final = 3.0
"""For the daemon to say goodbye to its server; and after that, for the guest to be put in order."""
RETRY_WAY_S: Final = 1.0
"""From a way that could not be opened to the next attempt. If the cause is that the interface has
just gone, the daemon says so within that time."""
GIVEN_UP_AFTER_S: Final = 5.0
"""Of standing still. A network forgets those it does not hear from after half a minute or more,
a server after a few of its pings; whoever stood for less is still known, and goes on."""
BREATH_S: Final = 0.05
"""Between the daemon's question for a server and our looking for it: it may ask without end."""
RECEIVE: Final = 32 * 1024
TAIL_LINES: Final = 20
MAX_PRINTED: Final = 400

T = TypeVar("T")


class Watcher(Protocol):
    """Who shows a run to its user. All calls are on the trio thread, and return at once."""

    def publish(self, status: VpnStatus, error: VpnFailed | None) -> None:
        """The status is another one; the error is why, where it has failed."""

    def show_bytes(self, status: VpnStatus) -> None:
        """Its byte counts are others, and nothing else."""

    def publish_log(self, flags: str, text: str) -> None:
        """OpenVPN has said something."""

    def run_is_over(self) -> None:
        """The daemon has ended, and the guest is in order."""


class DaemonRun:
    """One life of the daemon's.

    Args:
        watcher: Told what there is to see.
        machine: Where it runs.
        link: The provisioner's own.
        config: What the daemon is given, and `credentials` what the user knows.
        dns: Name servers in place of the VPN's, if any.
        outbound: Whether its server is reached by the host's network.
    """

    def __init__(
        self,
        watcher: Watcher,
        machine: Machine,
        link: OpenVpnLink,
        config: OpenVpnConfig,
        credentials: Credentials,
        dns: tuple[str, ...],
        outbound: bool,
    ) -> None:
        self._watcher = watcher
        self._machine = machine
        self._link = link
        self._config = config
        self._credentials = credentials
        self._places = Places(machine, OUTBOUND_PORT if outbound else None)
        self._proxy = TcpAddress(host=LOOPBACK, port=OUTBOUND_PORT) if outbound else None
        self._session = s.Session(credentials, config.remotes, dns)
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._send, self._outgoing = trio.open_memory_channel[bytes](64)
        self._way_send, self._ways = trio.open_memory_channel[s.OpenWay | s.ShutWay](64)
        self._budget = LogBudget()
        self._telling = Telling(self._publish, lambda: self._begin(self._tell_late, 1 / PER_S))
        self._printed: deque[str] = deque(maxlen=TAIL_LINES)
        self._hurry = trio.Event()
        self._holding = False
        self._asked_to_end = False
        self._ran = False
        self._way_is_open = False
        """Or may be, in part."""
        self._under_way: dict[str, trio.CancelScope] = {}
        self._over = trio.Event()

    def claim(self) -> None:
        """Be the one run of this machine's until `serve` ends, which is to follow at once.

        Raises:
            ConfigError: it has another.
        """
        if self._link.on_clock_change is not None:
            raise ConfigError("This machine has a tunnel already.", remedy="Stop it first.")
        self._link.on_clock_change = self._clock_changed

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Run the daemon to its end.

        Raises, before it runs:
            MicrovmError: the machine or its guest can't run it, or it was stopped meanwhile.
        """
        try:
            with self._scope:
                await self._serve(task_status)
            if not self._ran:
                raise VpnFailed(
                    "The VPN was stopped while it started.",
                    reason=VpnReason.DAEMON_DIED,
                    remedy="Start it again.",
                )
        except (MicrovmError, BaseExceptionGroup) as caught:
            error = _ours(caught)
            if error is None or not self._ran:
                raise  # a bug; or it never ran, which is for whoever started it
            if not self._asked_to_end:
                self._do(self._session.lost(error.message, time.time()))
        finally:
            cancelled = trio.current_effective_deadline() == -math.inf
            with trio.move_on_after(TERM_WITHIN_S, shield=True):
                if self._way_is_open and self._machine.state == "running":
                    await self._shut_way()
                await self._places.aclose()
            asked = self._asked_to_end or cancelled
            printed = [line[:MAX_PRINTED] for line in self._printed]
            if self._ran:  # else nobody was told that it had begun
                self._do(self._session.ended(printed, time.time(), asked=asked))
                self._telling.finish(trio.current_time())
            self._link.on_clock_change = None
            self._watcher.run_is_over()
            self._over.set()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        begin = UnixAddress(path=MANAGEMENT)
        guest = await self._machine.wait_ready()
        port, listener = listen_unguessed(self._link.channels)
        async with (
            listener,
            guest.listen_at(begin, port),
            guest.spawn(["openvpn", "--config", "stdin"]) as process,
            serving() as nursery,
        ):
            self._nursery = nursery
            self._watcher.publish(attrs.evolve(self._session.status, since=time.time()), None)
            nursery.start_soon(self._feed, process)
            nursery.start_soon(self._read_output, process.stdout)
            nursery.start_soon(self._read_output, process.stderr)
            nursery.start_soon(self._walk)
            nursery.start_soon(self._manage, listener)
            self._ran = True
            task_status.started()
            try:
                await process.wait()
            finally:
                self._nursery = None

    def end_by_itself(self) -> None:
        """From now on nothing but `stop` and `abandon` ends it: a goodbye comes first."""
        self._scope.shield = True

    def abandon(self) -> None:
        """End it without a word to its server."""
        self._asked_to_end = True
        self._scope.cancel()

    async def stop(self) -> None:
        """As `OpenVpnTunnel.stop`."""
        self._asked_to_end = True
        if self._ran:
            self._put(command("signal", "SIGTERM"))
            with trio.move_on_after(TERM_WITHIN_S):
                await self._over.wait()
        self._scope.cancel()
        await self._over.wait()

    # --- the daemon's streams -------------------------------------------------------------

    async def _feed(self, process: GuestProcess) -> None:
        text = effective_config(self._config, self._proxy)
        try:
            await process.stdin.send_all(text.encode())
            await process.stdin.aclose()
        except GuestError:
            return  # it has ended, and its output says why
        except trio.BrokenResourceError:
            return

    async def _read_output(self, stream: ReceiveStream) -> None:
        """What it prints, until its management is up, is why it can't start."""
        rest = b""
        while data := await stream.receive_some(RECEIVE):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-RECEIVE:]
            self._printed.extend(visible_text(line) for line in lines[-TAIL_LINES:])

    async def _manage(self, listener: trio.abc.Listener[HalfCloseableStream]) -> None:
        assert self._nursery is not None
        stream = await listener.accept()
        async with stream:
            await listener.aclose()
            self._nursery.start_soon(self._pump, stream)
            parser = ManagementParser()
            self._do(self._session.begin())
            try:
                while data := await stream.receive_some(RECEIVE):
                    for message in parser.feed(bytes(data)):
                        self._do(self._session.take(message, time.time()))
                    self._watcher.show_bytes(self._session.status)
            except ManagementError as error:
                self._do(self._session.broke(error.message, time.time()))
            except trio.BrokenResourceError:
                pass
            # Without its management the daemon ends by itself; one that does not is ended.
            await trio.sleep(TERM_WITHIN_S)
            self._scope.cancel()

    async def _pump(self, stream: HalfCloseableStream) -> None:
        try:
            async for data in self._outgoing:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            return

    # --- what the session wants done ------------------------------------------------------

    def _put(self, data: bytes) -> None:
        try:
            self._send.send_nowait(data)
        except trio.WouldBlock:
            self._scope.cancel()  # a daemon that asks and never listens

    def _do(self, steps: Sequence[s.Step]) -> None:
        for step in steps:
            match step:
                case s.Send(data=data):
                    self._put(data)
                case s.OpenWay() | s.ShutWay():
                    if isinstance(step, s.ShutWay):
                        self._telling.hold()  # until `_walk` has done it
                    try:
                        self._way_send.send_nowait(step)
                    except trio.WouldBlock:
                        self._scope.cancel()
                case s.Tell():
                    self._telling.put(self._session.status, trio.current_time())
                case s.Log(flags=flags, text=text):
                    self._log(flags, text)
                case s.Wait(seconds=seconds):
                    self._begin(self._hold, seconds)
                case s.Ask(challenge=challenge):
                    self._begin(self._ask, challenge)
                case s.FindWay():
                    self._begin(self._find_way, step)

    def _begin(self, task: Callable[[T], Awaitable[None]], argument: T) -> None:
        """Do it beside the reading, in place of the same of before.

        The daemon asks for one thing at a time, and one that asks a thousand times has one task.
        """
        if self._nursery is None:
            return
        name = task.__name__
        if name in self._under_way:
            self._under_way[name].cancel()
        scope = self._under_way[name] = trio.CancelScope()

        async def run() -> None:
            with scope:
                await task(argument)

        self._nursery.start_soon(run)

    def _publish(self, status: VpnStatus) -> None:
        failed = status.state is VpnState.FAILED
        self._watcher.publish(status, self._session.error() if failed else None)
        if failed:
            self._begin(self._bury, TERM_WITHIN_S)

    async def _tell_late(self, every_s: float) -> None:
        while self._telling.is_late:
            await trio.sleep(every_s)
            self._telling.go_on(trio.current_time())

    async def _bury(self, within_s: float) -> None:
        await trio.sleep(within_s)
        self._scope.cancel()

    def _log(self, flags: str, text: str) -> None:
        if self._may_log():
            self._watcher.publish_log(flags, text)

    def _warn(self, what: str, error: MicrovmError) -> None:
        if self._may_log():
            log.warning("%s: %s", what, error.message)

    def _may_log(self) -> bool:
        left_out = self._budget.left_out
        if not self._budget.take(time.monotonic()):
            return False
        if left_out:
            self._watcher.publish_log("W", f"({left_out} lines left out)")
        return True

    async def _hold(self, seconds: int) -> None:
        self._hurry, self._holding = trio.Event(), True
        with trio.move_on_after(seconds):
            await self._hurry.wait()
        self._holding = False
        self._put(command("hold", "release"))

    async def _ask(self, challenge: Challenge) -> None:
        assert self._credentials.answer is not None
        given = self._credentials.answer(challenge)
        answer = given if isinstance(given, str) else await given
        self._do(self._session.answered(challenge, answer, time.time()))

    async def _find_way(self, wanted: s.FindWay) -> None:
        await trio.sleep(max(BREATH_S, wanted.after_s))
        place = await self._places.find(wanted.host, wanted.port, wanted.proto)
        if isinstance(place, Found):
            self._do(self._session.found(wanted, place.address, place.untried))
        else:
            self._do(self._session.no_way(place.reason, place.said, time.time()))

    async def _walk(self) -> None:
        """Open and shut the way, in the order in which it was said."""
        async for step in self._ways:
            if isinstance(step, s.ShutWay):
                with trio.move_on_after(TERM_WITHIN_S):  # a guest that hangs hides nothing
                    await self._shut_way()
                self._telling.release(trio.current_time())
                continue
            self._way_is_open = True
            failure = ""
            try:
                await self._link.open_way(step.dns, ipv6=step.ipv6)
            except GuestError as error:
                self._warn("The way into the tunnel can't be opened", error)
                failure = error.message
                await trio.sleep(RETRY_WAY_S)
            if self._ways.statistics().current_buffer_used:
                continue  # this connection is gone again, and there may be another
            now = time.time()
            session = self._session
            self._do(session.way_failed(failure, now) if failure else session.way_is_open(now))

    async def _shut_way(self) -> None:
        """What can't be done is no reason to end: with the interface the route is gone too."""
        try:
            await self._link.shut_way()
        except GuestGone:
            pass
        except MicrovmError as error:
            self._warn("The way out of the guest can't be shut", error)
        else:
            self._way_is_open = False

    async def _clock_changed(self, jump: ClockJump) -> None:
        """The guest stood still: connect anew, without waiting for a timeout to find out."""
        if jump.slept_s < GIVEN_UP_AFTER_S or not self._ran:
            return
        if self._holding:
            self._hurry.set()
        elif self._session.is_waited_for:
            return  # it has not begun, and would end
        elif self._session.status.state not in (*ENDED, VpnState.EXITING):
            self._put(command("signal", "SIGUSR1"))


def _ours(error: BaseException) -> MicrovmError | None:
    """The error of the guest's or the machine's that a group holds, if it holds nothing else."""
    if isinstance(error, MicrovmError):
        return error
    assert isinstance(error, BaseExceptionGroup)
    for one in error.exceptions:
        if not isinstance(one, (MicrovmError, BaseExceptionGroup)) or _ours(one) is None:
            return None
    first = error.exceptions[0]
    return _ours(first)
