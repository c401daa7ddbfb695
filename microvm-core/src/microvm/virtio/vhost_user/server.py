"""The vhost-user back end: any `VirtioDevice`, served to a VMM over a Unix socket.

This is the shell around `Session`, which says what happens when: it receives messages and
descriptors, maps memory, runs the device in a task of its own, and gives everything back
however it ends.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from microvm._groups import only_error
from microvm.abc import Activation, ActiveQueue, VirtioDevice
from microvm.errors import BackendError, GuestError
from microvm.virtio.counts import SignalCounts
from microvm.virtio.device_run import DeviceRun, RunDoorbell
from microvm.virtio.fault_log import FaultLog
from microvm.virtio.features import VERSION_1
from microvm.virtio.pause_notice import PauseNotice
from microvm.virtio.queue import VirtQueue
from microvm.virtio.vhost_user.mapping import MappedMemory
from microvm.virtio.vhost_user.message import (
    HEADER,
    MAX_MEMORY_REGIONS,
    decode_header,
    decode_payload,
)
from microvm.virtio.vhost_user.session import Message, Session
from microvm.virtio.vhost_user.signals import CallLine, KickDoorbell, ReceivedFd

if TYPE_CHECKING:
    from trio.socket import SocketType

    from microvm.memory import GuestMemory
    from microvm.virtio.vhost_user.plan import RunPlan


async def serve_vhost_user(
    sock: socket.socket,
    device: VirtioDevice,
    counts: SignalCounts | None = None,
    pause: PauseNotice | None = None,
) -> None:
    """Serve `device` to the front end at the other end of `sock`, a Unix stream socket.

    Returns when the front end hangs up. However it ends, also when it is cancelled, by then the
    device's `run` has ended, guest memory is unmapped, and `sock` and every descriptor that
    came through it are closed. The device's `lifespan` is the caller's to hold open.

    A driver that breaks a rule (`GuestError` out of `run`) is logged once; the device then
    stays quiet until the driver has set it up again.

    Args:
        sock: The connection.
        device: The device.
        counts: Where its notifications and interrupts are counted, if that is wanted.
        pause: Where it is told that the front end pauses, if anybody tells.

    Raises:
        BackendError: the front end broke the protocol, or its memory can't be mapped.
    """
    with trio.socket.from_stdlib_socket(sock) as peer:
        backend = _Backend(peer, device, counts or SignalCounts(), pause or PauseNotice())
        try:
            with _unwrapped():
                async with trio.open_nursery() as nursery:
                    try:
                        await backend.converse(nursery)
                    finally:
                        with trio.CancelScope(shield=True):
                            await backend.stop()
                        device.reset()
        finally:
            backend.close()


class _Backend:
    """One connection and what it owns: the session's descriptors, and the memory."""

    def __init__(
        self, peer: SocketType, device: VirtioDevice, counts: SignalCounts, pause: PauseNotice
    ) -> None:
        self._peer = peer
        self._device = device
        self._session = Session(device)
        self._memory: MappedMemory | None = None
        self._run: _Run | None = None
        self._faults = FaultLog(device)
        self._counts = counts
        self._pause = pause

    async def converse(self, nursery: trio.Nursery) -> None:
        """Serve messages until the front end hangs up."""
        while (message := await _receive(self._peer)) is not None:
            try:
                reply = await self._act(message)
            except BaseException as error:
                for fd in message.fds:
                    fd.close()
                refusal = self._session.acknowledgement(message, success=False)
                if isinstance(error, BackendError) and refusal is not None:
                    await _send(self._peer, refusal)
                raise
            if reply is not None:
                await _send(self._peer, reply)
            plan = self._session.take_plan()
            if plan is not None and self._memory is not None:
                self._run = _Run(
                    self._device,
                    plan,
                    self._memory.memory,
                    self._faults,
                    self._counts,
                    self._session.config_changed,
                )
                nursery.start_soon(self._run.drive)

    async def _act(self, message: Message) -> bytes | None:
        if self._session.stops(message):
            await self.stop()
        step = self._session.receive(message)
        if step.map_memory is not None:
            self._unmap()
            self._memory = MappedMemory(step.map_memory, message.fds)
        return step.reply

    async def stop(self) -> None:
        """End the run, if one is under way."""
        if self._run is not None:
            bases = await self._run.stop()
            self._session.stopped(bases, paused=self._pause.announced)
            self._run = None

    def _unmap(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def close(self) -> None:
        """Give everything back; no run is under way."""
        self._session.close()
        self._unmap()


class _Run:
    """One run of the device, from its plan to the end of its task."""

    def __init__(
        self,
        device: VirtioDevice,
        plan: RunPlan,
        memory: GuestMemory,
        faults: FaultLog,
        counts: SignalCounts,
        config_changed: Callable[[], None],
    ) -> None:
        self._tell_of_config = config_changed
        self._over = False
        self._faults = faults
        self._counts = counts
        self._plan = plan
        self._memory = memory
        self._queues: list[VirtQueue] = []
        self._bases: dict[int, int] = {}
        self._run = DeviceRun(
            device,
            activate=self._activate,
            deactivate=self._deactivate,
            fresh=not plan.resumed,
            report=self._report,
        )

    async def drive(self) -> None:
        """Run the device until it ends or `stop` is called."""
        await self._run.drive()

    async def stop(self) -> Mapping[int, int]:
        """End the run, wait for it, and say where its rings stand."""
        await self._run.stop()
        return self._bases

    def _activate(self) -> Activation:
        plan = self._plan
        if not plan.features & VERSION_1:
            raise GuestError(
                "The driver did not accept VERSION_1: it, or the transport, is the legacy one.",
                remedy="Give QEMU `-global virtio-mmio.force-legacy=false`.",
            )
        for ring in plan.rings:
            self._queues.append(
                VirtQueue(
                    self._memory, plan.layout(ring), features=plan.features, next_avail=ring.base
                )
            )
        return Activation(
            features=plan.features,
            queues=tuple(
                ActiveQueue(
                    queue=queue,
                    doorbell=RunDoorbell(KickDoorbell(ring.kick), self._counts),
                    irq=CallLine(ring.ring, self._counts),
                )
                for ring, queue in zip(plan.rings, self._queues, strict=True)
            ),
            memory=self._memory,
            config_changed=self._config_changed,
        )

    def _config_changed(self) -> None:
        if not self._over:
            self._tell_of_config()

    def _deactivate(self) -> None:
        self._over = True
        for ring, queue in zip(self._plan.rings, self._queues, strict=False):
            queue.rewind()
            self._bases[ring.ring.index] = queue.next_avail
            queue.release()

    def _report(self, error: GuestError) -> None:
        self._faults.report(error)
        for ring in self._plan.rings:
            if ring.ring.err is not None:
                ring.ring.err.signal()


# --- the socket ------------------------------------------------------------------------------

_CUT: Final = "The vhost-user front end hung up in the middle of a message."


async def _receive(peer: SocketType) -> Message | None:
    """The next message, or None if the front end hung up behind the last one."""
    fds: list[ReceivedFd] = []
    try:
        head = await _receive_upto(peer, HEADER.size, fds)
        if not head:
            return None
        if len(head) < HEADER.size:
            raise BackendError(_CUT)
        header = decode_header(head)
        body = await _receive_upto(peer, header.size, fds)
        if len(body) < header.size:
            raise BackendError(_CUT)
        payload = decode_payload(header.request, body)
    except BaseException:
        for fd in fds:
            fd.close()
        raise
    return Message(
        request=header.request, payload=payload, fds=tuple(fds), need_reply=header.need_reply
    )


async def _receive_upto(peer: SocketType, size: int, fds: list[ReceivedFd]) -> bytes:
    """`size` bytes, fewer if the front end hung up. Descriptors join `fds`."""
    # One more than is ever legal, so that a surplus is seen and not cut off.
    ancillary_bytes = socket.CMSG_SPACE((MAX_MEMORY_REGIONS + 1) * array.array("i").itemsize)
    data = bytearray()
    while len(data) < size:
        try:
            part, ancillary, flags, _ = await peer.recvmsg(
                size - len(data), ancillary_bytes, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            break
        fds.extend(_descriptors(ancillary))
        if flags & socket.MSG_CTRUNC:
            raise BackendError("A vhost-user message came with too many descriptors.")
        if not part:
            break
        data += part
    return bytes(data)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> Iterator[ReceivedFd]:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            yield from map(ReceivedFd, numbers)


async def _send(peer: SocketType, data: bytes) -> None:
    """Send a reply. A front end that has hung up is noticed at the next receive."""
    try:
        while data:
            data = data[await peer.send(data) :]
    except (BrokenPipeError, ConnectionResetError):
        return


# --- errors ----------------------------------------------------------------------------------


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Let an error that is alone in its exception groups out by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = only_error(group)
        if error is group:
            raise
        raise error from None
