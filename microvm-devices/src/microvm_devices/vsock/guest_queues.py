"""`GuestQueues`: the RX and TX virtqueues of one run of the device, packet by packet.

Synchronous, and on the trio thread alone; when to call what is the muxer's business. The two
loops here are the path that every packet takes, and flat on purpose: a packet costs one system
call on the host's socket, no copy of its payload, and 4 to 6 us of Python.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from microvm.errors import QueueError
from microvm_devices.vsock import limits
from microvm_devices.vsock.connection import Event, State, shutdown_event
from microvm_devices.vsock.endpoint import HostEnd, Pending
from microvm_devices.vsock.packet import (
    HEADER,
    HEADER_BYTES,
    MAX_PACKET_BYTES,
    VIRTIO_VSOCK_TYPE_STREAM,
    VSOCK_CID_HOST,
    Op,
    cut,
    read_header,
    write_header,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm.abc import ActiveQueue
    from microvm.virtio.chain import DescriptorChain
    from microvm_devices.vsock.table import ConnectionTable

log = logging.getLogger(__name__)

# Members of an IntEnum cost an attribute access and a slow comparison each.
_REQUEST: Final = int(Op.REQUEST)
_RST: Final = int(Op.RST)
_RW: Final = int(Op.RW)
_CREDIT_UPDATE: Final = int(Op.CREDIT_UPDATE)

_EVENTS: Final = {
    int(Op.RESPONSE): Event.RESPONSE,
    int(Op.RST): Event.RST,
    int(Op.CREDIT_REQUEST): Event.CREDIT_REQUEST,
}
_OWED_OPS: Final = (
    (Pending.REQUEST, int(Op.REQUEST)),
    (Pending.RESPONSE, int(Op.RESPONSE)),
    (Pending.CREDIT_REQUEST, int(Op.CREDIT_REQUEST)),
    (Pending.CREDIT_UPDATE, int(Op.CREDIT_UPDATE)),
    (Pending.SHUTDOWN, int(Op.SHUTDOWN)),
)
"""In the order in which they go out: nothing before RESPONSE, nothing after SHUTDOWN."""


class GuestQueues:
    """The queues of one activation.

    Args:
        guest_cid: Packets from any other CID are dropped.
        rx: The queue that the guest receives from.
        tx: The queue that it sends into.
        table: The connections.
        accept: Called with the host port, guest port, buf_alloc and fwd_cnt of a guest's REQUEST
            for a new connection; False refuses it.
    """

    def __init__(
        self,
        guest_cid: int,
        rx: ActiveQueue,
        tx: ActiveQueue,
        table: ConnectionTable,
        accept: Callable[[int, int, int, int], bool],
    ) -> None:
        self.guest_cid = guest_cid
        self.rx = rx
        self.tx = tx
        self._table = table
        self._accept = accept
        self._spare: DescriptorChain | None = None
        """An RX buffer that was taken for data which was not there."""
        self._rx_starved = False
        self.dropped = 0
        self.resets_sent = 0
        # The device looks by itself when it has something to give.
        rx.queue.disable_notification()

    # --- TX ------------------------------------------------------------------------------

    def take_tx(self) -> bool:
        """Take TX packets, a batch at most, and return whether the queue is empty.

        Also stops, as not empty, when too many RSTs are owed.

        Raises:
            GuestError: the driver broke a rule.
        """
        queue = self.tx.queue
        pop, add_used, take, rsts = queue.pop, queue.add_used, self._take_packet, self._table.rsts
        for _ in range(limits.TX_BATCH):
            if len(rsts) >= limits.MAX_OWED_RSTS:
                return False
            chain = pop()
            if chain is None:
                return True
            take(chain)
            add_used(chain.head, 0)
        return False

    def _take_packet(self, chain: DescriptorChain) -> None:
        readable = chain.readable
        room = chain.readable_len - HEADER_BYTES
        if room < 0:
            raise QueueError(f"A TX packet of {chain.readable_len} bytes has no whole header.")
        (src_cid, dst_cid, guest_port, host_port, length, type_, op, flags, buf_alloc, fwd_cnt) = (
            read_header(readable)
        )
        if src_cid != self.guest_cid or dst_cid != VSOCK_CID_HOST:
            self._drop(f"it is from CID {src_cid} to CID {dst_cid}")
            return
        table = self._table
        end = table.ends.get(host_port << 32 | guest_port)
        if end is None or type_ != VIRTIO_VSOCK_TYPE_STREAM or op == _REQUEST:
            # 5.10.6.4.2: what can't be served is answered by an RST. An RST never is, or two
            # sides that both think so would go on for ever.
            wanted = end is None and type_ == VIRTIO_VSOCK_TYPE_STREAM and op == _REQUEST
            if wanted and self._accept(host_port, guest_port, buf_alloc, fwd_cnt):
                return
            if op != _RST:
                table.rsts.append((guest_port, host_port, type_))
            return
        conn = end.conn
        conn.peer_buf_alloc = buf_alloc
        conn.peer_fwd_cnt = fwd_cnt
        if end.no_credit and conn.peer_free():
            table.credit_came(end)
        if op != _RW:
            self._take_control(end, op, flags)
            return
        if not conn.takes_data:
            if conn.state is State.CONNECTING:
                table.tell(end, Event.VIOLATION)
            else:
                self._drop(f"connection {conn} takes no more data")
            return
        if length > room or length > MAX_PACKET_BYTES or length > conn.free():
            table.tell(end, Event.VIOLATION)
            return
        if not length:
            return
        conn.received(length)
        views: Sequence[memoryview]
        if length == room and len(readable) == 2 and len(readable[0]) == HEADER_BYTES:
            views = readable[1:]
        else:
            views = cut(readable, HEADER_BYTES, length)
        behind = bool(end.backlog)
        try:
            taken = end.write(views, length)
        except OSError:
            table.tell(end, Event.HOST_DEAF)
            return
        if taken and conn.flushed(taken):
            table.owe(end, Pending.CREDIT_UPDATE)
        if taken < length and not behind:
            table.backlog_began(end)

    def _take_control(self, end: HostEnd, op: int, flags: int) -> None:
        if op == _CREDIT_UPDATE:
            return
        event = shutdown_event(flags) if op == Op.SHUTDOWN else _EVENTS.get(op)
        if event is not None:
            self._table.tell(end, event)
        elif op != Op.SHUTDOWN:
            self._drop(f"its operation is {op}")

    def _drop(self, why: str) -> None:
        if not self.dropped:
            log.info("a vsock packet of the guest's is dropped (later ones are counted): %s", why)
        self.dropped += 1

    # --- RX ------------------------------------------------------------------------------

    def fill_rx(self) -> bool:
        """Give the guest what it is owed, then what the host has sent, as far as it has buffers.

        Returns:
            True if a batch was filled, and there may be more to do.

        Raises:
            GuestError: the driver broke a rule.
        """
        table = self._table
        left = limits.RX_BATCH
        while left > 0:
            if table.rsts:
                chain = self._rx_buffer()
                if chain is None:
                    return False
                guest_port, host_port, type_ = table.rsts.popleft()
                self._put(chain, host_port, guest_port, 0, _RST, type_=type_)
                self.resets_sent += 1
                left -= 1
            elif table.owing:
                if not self._pay(next(iter(table.owing))):
                    return False
                left -= 1
            elif table.ready:
                filled = self._read_host(next(iter(table.ready)), min(left, limits.READ_QUANTUM))
                if filled is None:
                    return False
                left -= filled
            else:
                return False
        return True

    def _rx_buffer(self) -> DescriptorChain | None:
        """The next RX buffer; without one, the doorbell has been asked for."""
        chain = self._spare
        if chain is not None:
            self._spare = None
            return chain
        queue = self.rx.queue
        chain = queue.pop()
        if chain is None:
            if self._rx_starved:
                return None
            self._rx_starved = True
            chain = queue.pop() if queue.enable_notification() else None
            if chain is None:
                return None
        if self._rx_starved:
            self._rx_starved = False
            queue.disable_notification()
        if chain.writable_len <= HEADER_BYTES:
            raise QueueError(
                f"An RX buffer of {chain.writable_len} bytes has no room for a packet."
            )
        return chain

    def _pay(self, end: HostEnd) -> bool:
        """Send one of the packets that the first connection owes; False without an RX buffer."""
        if end.owed:
            chain = self._rx_buffer()
            if chain is None:
                return False
            conn = end.conn
            what, op = next(owed for owed in _OWED_OPS if end.owed & owed[0])
            end.owed &= ~what
            conn.sent(0)
            self._put(
                chain,
                conn.host_port,
                conn.guest_port,
                0,
                op,
                flags=conn.shutdown if what is Pending.SHUTDOWN else 0,
                buf_alloc=conn.buf_alloc,
                fwd_cnt=conn.fwd_cnt,
            )
        if not end.owed:
            del self._table.owing[end]
        return True

    def _read_host(self, end: HostEnd, quantum: int) -> int | None:
        """Fill RX buffers from the socket that is first in `ready`, which then goes or moves back.

        Returns:
            How many were filled; None when the guest has none left.
        """
        table = self._table
        conn = end.conn
        rx_buffer = self._rx_buffer
        filled = 0
        while conn.reads_host:
            if filled == quantum:
                _to_the_end(table.ready, end)
                return filled
            free = conn.peer_free()
            if not free:
                end.no_credit = True
                table.owe(end, Pending.CREDIT_REQUEST)
                break
            chain = rx_buffer()
            if chain is None:
                if filled:
                    # A guest that gives buffers one by one must not hear one stream alone.
                    _to_the_end(table.ready, end)
                return None
            writable = chain.writable
            room = chain.writable_len - HEADER_BYTES
            limit = min(free, MAX_PACKET_BYTES)
            views: Sequence[memoryview]
            if room <= limit and len(writable) == 2 and len(writable[0]) == HEADER_BYTES:
                views = writable[1:]
            else:
                room = min(room, limit)
                views = cut(writable, HEADER_BYTES, room)
            try:
                length = end.read_into(views)
            except BlockingIOError:
                self._spare = chain
                end.readable = False
                break
            except OSError:
                self._spare = chain
                table.tell(end, Event.HOST_RESET)
                break
            if not length:
                self._spare = chain
                table.tell(end, Event.HOST_GONE if end.hung_up else Event.HOST_EOF)
                break
            conn.sent(length)
            self._put(
                chain,
                conn.host_port,
                conn.guest_port,
                length,
                _RW,
                buf_alloc=conn.buf_alloc,
                fwd_cnt=conn.fwd_cnt,
            )
            filled += 1
            if length < room and not end.ended:
                # Less than asked for: the socket is empty, and what comes brings an edge.
                end.readable = False
                break
        table.ready.pop(end, None)
        return filled

    def _put(
        self,
        chain: DescriptorChain,
        host_port: int,
        guest_port: int,
        length: int,
        op: int,
        *,
        type_: int = VIRTIO_VSOCK_TYPE_STREAM,
        flags: int = 0,
        buf_alloc: int = 0,
        fwd_cnt: int = 0,
    ) -> None:
        """Write the header of a packet whose payload is in place, and hand it to the guest."""
        header = HEADER.pack(
            VSOCK_CID_HOST,
            self.guest_cid,
            host_port,
            guest_port,
            length,
            type_,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        )
        write_header(chain.writable, header)
        self.rx.queue.add_used(chain.head, HEADER_BYTES + length)


def _to_the_end(waiting: dict[HostEnd, None], end: HostEnd) -> None:
    del waiting[end]
    waiting[end] = None
