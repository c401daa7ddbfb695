"""A guest that sends anything at all, and a host that does anything meanwhile (hypothesis).

After every step: nothing but typed errors, never more to the guest than the credit it gave, RST
never answered, and what is kept is bounded.
"""

import contextlib
import os
from collections import Counter
from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.config import VsockConfig
from microvm.errors import GuestError, QueueError
from microvm.testing.queue_driver import activation
from microvm_devices.vsock import limits
from microvm_devices.vsock.connection import State
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.endpoint import Pending
from microvm_devices.vsock.packet import VIRTIO_VSOCK_TYPE_STREAM, Op, VsockPacket
from microvm_devices.vsock.testing import GuestVsock

U32 = 0xFFFF_FFFF
LISTENING = 1024

numbers = st.sampled_from([0, 1, 2, 100, 4096, 65536, 262144, 1 << 31, U32 - 1, U32])
often = st.sampled_from
packets = st.fixed_dictionaries(
    {
        "op": st.one_of(often([int(op) for op in Op]), st.integers(0, 0xFFFF)),
        "src_port": often([1, 2]),
        "dst_port": st.one_of(often([LISTENING, limits.FIRST_HOST_PORT]), numbers),
        "flags": st.one_of(st.integers(0, 3), numbers),
        "buf_alloc": numbers,
        "fwd_cnt": st.one_of(st.just(0), numbers),
        "type": often([1, 1, 1, 1, 1, 0, 2]),
        "src_cid": often([3, 3, 3, 3, 3, 2, 4]),
        "dst_cid": often([2, 2, 2, 2, 2, 3]),
        # None: the payload's own length.
        "len": st.one_of(st.none(), st.none(), st.none(), numbers),
        "payload": often([0, 0, 1, 100, 4097, 65536]),
    }
)
steps = st.one_of(
    st.tuples(st.just("packet"), packets),
    st.tuples(st.just("packet"), packets),
    st.tuples(st.just("packet"), packets),
    st.tuples(st.just("rx"), st.integers(0, 8)),
    st.tuples(
        st.just("host"), often(["send", "read", "end", "close", "connect", "accept", "deaf"])
    ),
)


class Run:
    """One device, its guest and its programs, for a list of steps."""

    def __init__(self, device: VsockDevice, guest: GuestVsock, nursery: trio.Nursery) -> None:
        self.device = device
        self.guest = guest
        self.nursery = nursery
        self.listener = device.listen(LISTENING)
        self.streams: list[trio.SocketStream] = []
        # What the guest has told, and what it was sent, by its port and the host's.
        self.credit: dict[tuple[int, int], tuple[int, int]] = {}
        self.sent: Counter[tuple[int, int]] = Counter()

    async def step(self, kind: str, argument: Any) -> None:
        if kind == "packet":
            self.packet(dict(argument))
        elif kind == "rx":
            self.guest.post_rx(argument)
        else:
            await self.host(argument)
        await trio.testing.wait_all_tasks_blocked()
        self.check()

    def packet(self, fields: dict[str, Any]) -> None:
        payload = bytes(fields.pop("payload"))
        if fields["len"] is None:
            fields["len"] = len(payload)
        header = VsockPacket(**fields)
        key = header.src_port, header.dst_port
        ours = (header.src_cid, header.dst_cid, header.type) == (3, 2, VIRTIO_VSOCK_TYPE_STREAM)
        known = connection(self.device, key)
        if ours and (header.op == Op.REQUEST) != (known is not None):
            if known is None:
                self.sent[key] = 0
            self.credit[key] = header.buf_alloc, header.fwd_cnt
        self.guest.put(header, payload)

    async def host(self, what: str) -> None:
        if what == "connect":
            self.nursery.start_soon(self.connect)
            return
        if what == "accept":
            with contextlib.suppress(trio.WouldBlock):
                self.streams.append(self.listener._receive.receive_nowait())
            return
        if not self.streams:
            return
        stream = self.streams[-1]
        # Nothing here waits: the sockets are non-blocking, as trio has made them.
        with contextlib.suppress(OSError):
            if what == "send":
                os.write(stream.socket.fileno(), bytes(50_000))
            elif what == "read":
                os.read(stream.socket.fileno(), 100_000)
            elif what == "end":
                stream.socket.shutdown(trio.socket.SHUT_WR)
            elif what == "deaf":
                stream.socket.shutdown(trio.socket.SHUT_RD)
            elif what == "close":
                await self.streams.pop().aclose()

    async def connect(self) -> None:
        with contextlib.suppress(GuestError):
            self.streams.append(await self.device.connect(1))

    def check(self) -> None:
        table = self.device._muxer._table
        for packet in self.guest.received():
            header = packet.header
            key = header.dst_port, header.src_port
            if header.op == Op.REQUEST:
                self.sent[key] = 0
                self.credit[key] = 0, 0
            if header.op == Op.RW:
                self.sent[key] += header.len
                buf_alloc, fwd_cnt = self.credit[key]
                in_flight = (self.sent[key] - fwd_cnt) & U32
                assert in_flight <= buf_alloc, (packet.header, in_flight, buf_alloc)
        for end in table.ends.values():
            assert len(end.backlog) <= end.conn.buf_alloc
            assert end.conn.state is not State.CLOSED
            assert (end in table.owing) == (end.owed != Pending.NOTHING)
        assert len(table.rsts) <= limits.MAX_OWED_RSTS
        assert len(table) == len({*table.ends.values(), *table._by_fd.values()})
        assert set(table.lingering) <= set(table.ends.values())
        # What is to be done is done for the living alone.
        assert {*table.owing, *table.ready} <= set(table.ends.values())


def connection(device: VsockDevice, key: tuple[int, int]) -> object:
    guest_port, host_port = key
    return device._muxer._table.ends.get(host_port << 32 | guest_port)


@settings(deadline=None, max_examples=100)
@given(st.lists(steps, min_size=1, max_size=40), st.booleans())
def test_any_guest_and_any_host(todo: list[tuple[str, Any]], split: bool) -> None:
    async def main() -> None:
        device, guest = VsockDevice(VsockConfig()), GuestVsock(split=split)
        guest.auto_rx = False
        async with guest.attached(device), trio.open_nursery() as nursery:
            run = Run(device, guest, nursery)
            async with run.listener:
                for kind, argument in todo:
                    await run.step(kind, argument)
                guest.auto_rx = True
                guest.post_rx()
                await trio.testing.wait_all_tasks_blocked()
                run.check()
            for stream in run.streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()
        assert device.statistics.connections == 0

    trio.run(main)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.binary(max_size=60), min_size=1, max_size=4), max_size=10))
def test_any_bytes_in_tx_end_in_service_or_in_a_queue_error(chains: list[list[bytes]]) -> None:
    async def main() -> None:
        device, guest = VsockDevice(VsockConfig()), GuestVsock()
        async with device.lifespan():
            guest.post_rx()
            for chain in chains:
                guest.put_bytes(chain)
            short = any(sum(map(len, chain)) < 44 for chain in chains)
            with trio.CancelScope() as scope:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(device.run, activation(guest.rx, guest.tx, guest.event))
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
                except* QueueError:
                    assert short
                else:
                    assert not short
            assert scope.cancel_called or short

    trio.run(main)
