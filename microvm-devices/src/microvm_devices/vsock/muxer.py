"""`VsockMuxer`: between the virtqueues of one guest and the host's sockets; who is woken by what.

Everything here runs on the trio thread, and every step between two waits is synchronous, so that
there is nothing to lock. It is woken by

* the TX doorbell: packets are taken in batches, then RX is filled, since answers may be owed;
* the poller, one descriptor for all sockets: edges are noted, backlogs flushed, RX filled;
* the RX doorbell, which rings only after RX buffers ran out: RX is filled;
* a program that connects: RX is filled.

So it wakes once for many packets, it waits for nothing that nobody can act upon, and TX is served
while RX is full.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from microvm.errors import (
    BackendError,
    ConfigError,
    GuestError,
    GuestGone,
    GuestRefused,
    QueueError,
)
from microvm_devices.vsock import limits
from microvm_devices.vsock.connection import Event
from microvm_devices.vsock.dialing import Answer, Dialing
from microvm_devices.vsock.guest_queues import GuestQueues
from microvm_devices.vsock.listener import VsockListener, stream_over
from microvm_devices.vsock.packet import RX_QUEUE, TX_QUEUE
from microvm_devices.vsock.poller import HostPoller
from microvm_devices.vsock.table import ConnectionTable

if TYPE_CHECKING:
    from microvm.abc import Activation

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class VsockStatistics:
    """What the device counts."""

    connections: int
    """Alive now, those included whose host side has not read everything yet."""
    dropped_packets: int
    """Of the guest's: wrong CIDs, unknown operations, data after the end."""
    resets_sent: int
    """RST packets given to the guest."""


class _Session:
    """The time between DRIVER_OK, or the end of a pause, and reset or the next pause."""

    def __init__(self, queues: GuestQueues) -> None:
        self.queues = queues
        self.scope = trio.CancelScope()
        self.more_rx = trio.Event()
        """Set when filling RX has stopped for the sake of other tasks."""
        self.rsts_went = trio.Event()
        """Set when there is room again for RSTs to be owed."""
        self.failure: GuestError | None = None


class VsockMuxer:
    """All connections of one guest, from both sides.

    Args:
        guest_cid: The guest's CID.
        dial_host: Connects, without blocking, to whoever serves a host port that has no listener
            here; None, or an `OSError`, refuses the guest.
    """

    def __init__(
        self, guest_cid: int, dial_host: Callable[[int], socket.socket | None] | None = None
    ) -> None:
        self._guest_cid = guest_cid
        self._dial_host = dial_host
        self._table = ConnectionTable()
        self._listeners: dict[int, VsockListener] = {}
        self._session: _Session | None = None
        self._gone = False
        self._changed = trio.Event()
        """Replaced at each change of the two above."""
        self._dropped = 0
        self._resets_sent = 0

    @property
    def statistics(self) -> VsockStatistics:
        """The counters now."""
        queues = self._session.queues if self._session is not None else None
        return VsockStatistics(
            connections=len(self._table),
            dropped_packets=self._dropped + (queues.dropped if queues else 0),
            resets_sent=self._resets_sent + (queues.resets_sent if queues else 0),
        )

    # --- for programs on the host --------------------------------------------------------

    async def connect(self, port: int) -> trio.SocketStream:
        """As `GuestChannels.connect`."""
        _check_port(port)
        while True:
            await self.wait_active()
            ours, theirs = _socket_pair()
            try:
                answer = await self.dial_guest(ours, port)
            except BaseException:
                theirs.close()
                raise
            if answer is Answer.ACCEPTED:
                return stream_over(theirs)
            theirs.close()
            if answer is Answer.REFUSED:
                raise GuestRefused(
                    f"Nothing in the guest listens on vsock port {port}.",
                    remedy="Start the guest's program first, or let it connect to a port of the"
                    " host's when it is ready, and listen there.",
                )

    async def dial_guest(self, sock: socket.socket, port: int, *, greet: bool = False) -> Answer:
        """Ask the guest for a connection between its `port` and `sock`, which is ours from now on.

        Does not wait for a driver: without one, and when it resets the device, the answer is
        RESET. Cancelling gives up; a guest that accepts after that is told RST.

        Raises:
            GuestRefused: too many connections are open.
        """
        session = self._session
        if session is None or self._table.is_full:
            sock.close()
            await trio.lowlevel.checkpoint()
            if session is None:
                return Answer.RESET
            raise GuestRefused(
                f"All {limits.MAX_CONNECTIONS} connections of the vsock device are in use.",
                remedy="Close streams that are not needed any more.",
            )
        dialing = Dialing(greet=greet)
        end = self._table.open_to_guest(sock, port, dialing)
        self._pump()
        try:
            return await dialing.wait()
        except BaseException:
            self._table.tell(end, Event.HOST_GONE)
            self._pump()
            raise

    async def wait_active(self) -> None:
        """Wait until the guest's driver is there.

        Raises:
            GuestGone: the machine has ended.
        """
        while self._session is None:
            if self._gone:
                raise GuestGone("The machine has ended; its ports can't be reached any more.")
            await self._changed.wait()

    def listen(self, port: int) -> VsockListener:
        """As `GuestChannels.listen`.

        Raises:
            GuestGone: the machine has ended.
        """
        _check_port(port)
        if self._gone:
            raise GuestGone("The machine has ended; it will not connect any more.")
        if port in self._listeners:
            raise ConfigError(
                f"Vsock port {port} of the host has a listener already.",
                remedy="Close that one first, or choose another port.",
            )
        listener = VsockListener(port, self._forget_listener)
        self._listeners[port] = listener
        return listener

    def _forget_listener(self, listener: VsockListener) -> None:
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]

    # --- life ----------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, *tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
        """Held open for the machine's whole life. `tasks` run until its end."""
        poller = self._table.poller = HostPoller()
        try:
            async with _background(self._watch_host, self._reap, *tasks):
                yield
        finally:
            self._gone = True
            self._end_session()
            self._table.close_all()
            self._table.poller = None
            poller.close()
            for listener in self._listeners.values():
                listener.machine_ended()
            self._tell_change()

    async def serve(self, activation: Activation) -> None:
        """Serve the queues until cancelled. Connections outlive that, since it may be a pause.

        Raises:
            GuestError: the driver broke a rule.
        """
        if len(activation.queues) <= TX_QUEUE:
            raise QueueError(f"The driver has set up {len(activation.queues)} queues of 3.")
        if self._table.poller is None:
            raise RuntimeError("run() is for the inside of lifespan()")
        queues = GuestQueues(
            self._guest_cid,
            activation.queues[RX_QUEUE],
            activation.queues[TX_QUEUE],
            self._table,
            self._accept,
        )
        session = self._session = _Session(queues)
        self._tell_change()
        try:
            with session.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._serve_tx, session)
                    nursery.start_soon(self._serve_rx, session)
                    nursery.start_soon(self._go_on, session)
        finally:
            self._end_session()
        if session.failure is not None:
            raise session.failure

    def reset(self) -> None:
        """The guest has forgotten its connections: each ends as if it had sent an RST."""
        self._table.guest_forgot()

    def _end_session(self) -> None:
        session = self._session
        if session is None:
            return
        self._session = None
        self._dropped += session.queues.dropped
        self._resets_sent += session.queues.resets_sent
        session.scope.cancel()
        self._tell_change()

    def _fail(self, session: _Session, failure: GuestError) -> None:
        """The driver broke a rule: touch its queues no more, and let `serve` raise it."""
        if session is self._session:
            session.failure = failure
            self._end_session()
            self._table.guest_forgot()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- tasks ---------------------------------------------------------------------------

    async def _serve_tx(self, session: _Session) -> None:
        tx, rsts = session.queues.tx, self._table.rsts
        queue = tx.queue
        try:
            while True:
                queue.disable_notification()
                while True:
                    empty = session.queues.take_tx()
                    tx.notify()
                    self._pump()
                    if len(rsts) >= limits.MAX_OWED_RSTS:
                        session.rsts_went = trio.Event()
                        await session.rsts_went.wait()
                    elif empty and not queue.enable_notification():
                        break
                    else:
                        queue.disable_notification()
                        await trio.lowlevel.checkpoint()
                await tx.doorbell.wait()
        except GuestError as failure:
            self._fail(session, failure)

    async def _serve_rx(self, session: _Session) -> None:
        while True:
            await session.queues.rx.doorbell.wait()
            self._pump()

    async def _go_on(self, session: _Session) -> None:
        while True:
            await session.more_rx.wait()
            session.more_rx = trio.Event()
            self._pump()

    async def _watch_host(self) -> None:
        poller = self._table.poller
        assert poller is not None
        while True:
            await trio.lowlevel.wait_readable(poller)
            self._table.take_edges(poller.poll())
            self._pump()

    async def _reap(self) -> None:
        """End what a guest has left lingering."""
        while True:
            await self._table.somebody_lingers.wait()
            due = self._table.expire(trio.current_time())
            self._pump()
            if due is not None:
                await trio.sleep_until(due)

    # --- steps ---------------------------------------------------------------------------

    def _pump(self) -> None:
        """Fill RX with what there is for the guest."""
        session = self._session
        if session is None:
            return
        queues = session.queues
        try:
            more = queues.fill_rx()
            queues.rx.notify()
        except GuestError as failure:
            self._fail(session, failure)
            return
        if more:
            session.more_rx.set()
        if len(self._table.rsts) < limits.MAX_OWED_RSTS:
            session.rsts_went.set()

    def _accept(self, host_port: int, guest_port: int, buf_alloc: int, fwd_cnt: int) -> bool:
        """Give the guest the connection that it asks for, or not."""
        sock: socket.socket | None = None
        if self._table.is_full:
            log.debug("guest's connection to port %d refused: too many", host_port)
            return False
        try:
            listener = self._listeners.get(host_port)
            if listener is not None:
                sock = listener.offer()
            elif self._dial_host is not None:
                sock = self._dial_host(host_port)
        except OSError as error:
            log.debug("guest's connection to port %d refused: %s", host_port, error)
        if sock is None:
            return False
        self._table.open_to_host(sock, host_port, guest_port, buf_alloc, fwd_cnt)
        return True


@asynccontextmanager
async def _background(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run tasks beside the block and cancel them at its end.

    An exception of the block comes out as it is, not in a group as a nursery would have it.
    """
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
        raise alone from alone.__cause__


def _check_port(port: int) -> None:
    if not 0 <= port <= limits.MAX_PORT:
        raise ConfigError(f"A vsock port is a number from 0 to {limits.MAX_PORT}, not {port!r}.")


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise BackendError(
            f"The host can't give a pair of sockets: {error.strerror}.",
            remedy="Raise the limit on open files (ulimit -n), or close streams.",
        ) from error
