"""What a vhost-user back end remembers of its front end, and when its device runs.

A `Session` takes decoded messages and answers with replies and with plans; it does no IO. The
server asks `stops` before each message and, if so, ends the device's run and reports where its
rings stood; then `receive`; then it looks whether `take_plan` has a run to start.

A ring is *named* by any of NUM, ADDR, BASE, KICK and being enabled; it is *complete* with size,
addresses and a kick; it is *enabled* by ENABLE, or from the start where PROTOCOL_FEATURES was not
taken ("Ring states"). The rule of activation:

    The device runs when features and memory are known and the named rings are 0 to n, all
    complete and enabled. Where PROTOCOL_FEATURES was not taken, CALL and ERR name a ring too.

Why so: a device gets all its rings at once and keeps them, but the protocol speaks of one ring
at a time and never says how many there will be. A front end completes all rings before it
enables the first, so that naming has ended when enabling begins; or, as QEMU does for a network
card, it enables all that the driver will use before it completes the first. An old one that does
not enable (QEMU up to 7.1) gives each ring its call at the very beginning, long before their
addresses.

A network card is the exception: its driver sets up all pairs of queues and uses as many as it
likes (virtio 1.2, 5.1.6.5.6), and a front end that keeps the control queue to itself tells us by
enabling those. It runs with the pairs, from the first on, that are enabled, when these are
complete; each change of their number is another run.

The document starts a ring at its first kick; we take the arrival of the kick descriptor for it,
as others do, since a device has things to tell (vsock: a host's connection) before the driver
first kicks the ring that answers.

Ownership: while the device runs, its rings and memory are its own. Each message that would
change them under its hands (memory table, ring size, address, base, kick, disabling, features,
GET_VRING_BASE, RESET_OWNER) ends the run first, whole. Only then are descriptors closed and memory
unmapped. CALL and ERR are replaced in flight: QEMU does so when a guest masks interrupts.

What QEMU 7.2 was seen to send, in order. At realize: GET_FEATURES, GET_PROTOCOL_FEATURES,
SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_OWNER, GET_FEATURES; CALL and ERR ring by ring;
GET_CONFIG. When the driver sets DRIVER_OK: CALL again, SET_FEATURES, SET_MEM_TABLE; NUM, BASE,
ADDR, KICK ring by ring; ENABLE ring by ring; and once it runs, CALL with the guest's own
interrupt. When the driver resets the device: ENABLE 0 and then GET_VRING_BASE ring by ring, CALL.
The same when the VM is paused; what follows then begins with the bases we gave, while a driver
that begins anew begins at 0. That is all the difference there is on the wire, and whether the
device's `reset` is called is made of it. Rings that stand at 0 in a pause, as they do after each
65536 requests, look like a driver's reset: so whoever pauses the front end announces it
(`PauseNotice`), and a run that ended meanwhile goes on at 0 too. From a front end of which nobody
tells, a pause at 0 is a reset.

CONFIG_CHANGE_MSG goes out on the channel of SET_BACKEND_REQ_FD, which is asked for where the device
has a configuration space. QEMU 7.2 gives one to every device; where the front end has no use for a
change (vsock's), it drops the message.

STATUS is not offered: QEMU 7.2 accepts it and, for the devices whose front end is not a network
card's, never sends DRIVER_OK; whoever waits for that waits for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from microvm.abc import VirtioDevice
from microvm.errors import BackendError
from microvm.virtio.features import ANY_LAYOUT, NOTIFY_ON_EMPTY, RING_FEATURES, RING_RESET
from microvm.virtio.ids import DeviceType
from microvm.virtio.queue import MAX_INDEX
from microvm.virtio.vhost_user.message import (
    CONFIG_CHANGED,
    F_PROTOCOL_FEATURES,
    U64,
    ChannelFd,
    ConfigSpace,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    encode_payload,
    encode_reply,
    expected_fds,
)
from microvm.virtio.vhost_user.plan import Handle, Ring, RunPlan

# Bits that a VMM may offer its guest by itself and then pass on to us. None changes what we see.
_OF_THE_VMM: Final = NOTIFY_ON_EMPTY | ANY_LAYOUT | RING_RESET

_NET_F_CTRL_VQ: Final = 1 << 17
"""There is a control queue (virtio 1.2, 5.1.3)."""


@attrs.frozen(kw_only=True)
class Message:
    """One message of the front end, decoded."""

    request: Request
    payload: Payload
    fds: tuple[Handle, ...] = ()
    need_reply: bool = False


@attrs.frozen(kw_only=True)
class Step:
    """What is to be done after a message, in this order."""

    map_memory: tuple[MemoryRegion, ...] | None = None
    """Unmap what there was, and map these from the message's descriptors."""
    reply: bytes | None = None
    """Send this."""


class Session:
    """One front end's connection, without its socket.

    Args:
        device: Says what is offered and answers for its configuration space.
    """

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.rings = tuple(Ring(index=index) for index in range(len(device.queue_max_sizes)))
        self.offered = device.features | RING_FEATURES | F_PROTOCOL_FEATURES
        self.offered_protocol = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
        if type(device).read_config is not VirtioDevice.read_config:
            # QEMU warns on stderr about configuration spaces for devices that have none.
            self.offered_protocol |= ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
        self.features: int | None = None
        self.protocol_features = ProtocolFeature(0)
        self.regions: tuple[MemoryRegion, ...] = ()
        self._channel: Handle | None = None
        self._run_is_due = True
        self._paused_at: Mapping[int, int] = {}

    def stops(self, message: Message) -> bool:
        """Whether a run must have ended before `receive` may see this message."""
        return _RULES[message.request].stops(self, message.payload)

    def stopped(self, bases: Mapping[int, int], *, paused: bool = False) -> None:
        """Take down where a run has left its rings.

        Args:
            bases: Available index by ring index.
            paused: The front end is being paused: a run that begins there goes on.
        """
        for index, base in bases.items():
            self.rings[index].base = base
        self._paused_at = dict(bases) if paused else {}

    def receive(self, message: Message) -> Step:
        """Act on a message. If this returns, its descriptors are the session's.

        Raises:
            BackendError: the front end broke the protocol. The connection is of no use any more.
        """
        rule = _RULES[message.request]
        name = message.request.name
        if rule.needs not in self.protocol_features:
            raise BackendError(f"The vhost-user front end sent {name}, which was not negotiated.")
        due = expected_fds(message.payload)
        if len(message.fds) != due:
            raise BackendError(f"{name} came with {len(message.fds)} descriptors, not {due}.")
        if rule.stops(self, message.payload):
            self._run_is_due = True
        answer = rule.serve(self, message.payload, message.fds)
        return Step(
            map_memory=self.regions if message.request is Request.SET_MEM_TABLE else None,
            reply=self.acknowledgement(message, success=True)
            if answer is None
            else encode_reply(message.request, encode_payload(answer)),
        )

    def acknowledgement(self, message: Message, *, success: bool) -> bytes | None:
        """The reply to a message that has none of its own, where one is asked for."""
        if not message.need_reply or ProtocolFeature.REPLY_ACK not in self.protocol_features:
            return None
        return encode_reply(message.request, encode_payload(U64(value=int(not success))))

    def take_plan(self) -> RunPlan | None:
        """The run to start now, if there is one. Each is given once.

        After a run that ended by itself there is none until the front end sets one up anew.
        """
        if not self._run_is_due or self.features is None or not self.regions:
            return None
        rings = [ring for ring in self.rings if self._is_named(ring)]
        if self._runs_by_pairs:
            rings = _enabled_pairs(rings)
        if not rings or rings[-1].index >= len(rings):
            return None
        if not all(ring.complete and (ring.enabled or not self._enables) for ring in rings):
            return None
        self._run_is_due = False
        paused_at, self._paused_at = self._paused_at, {}
        return RunPlan(
            features=self.features & self.offered & ~F_PROTOCOL_FEATURES,
            regions=self.regions,
            rings=tuple(ring.plan() for ring in rings),
            paused_at=paused_at,
        )

    @property
    def _enables(self) -> bool:
        """Whether rings wait for SET_VRING_ENABLE."""
        return bool((self.features or 0) & F_PROTOCOL_FEATURES)

    @property
    def _runs_by_pairs(self) -> bool:
        control = (self.features or 0) & _NET_F_CTRL_VQ
        return self._enables and self.device.device_id == DeviceType.NET and not control

    def _is_named(self, ring: Ring) -> bool:
        return ring.named or not (self._enables or (ring.call is None and ring.err is None))

    def config_changed(self) -> None:
        """Tell the front end, if it can be told: it reads the configuration space anew."""
        if self._channel is not None:
            self._channel.send(CONFIG_CHANGED)

    def close(self) -> None:
        """Close every descriptor the session holds."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for ring in self.rings:
            for handle in (ring.kick, ring.call, ring.err):
                if handle is not None:
                    handle.close()
            ring.kick = ring.call = ring.err = None


def _enabled_pairs(rings: Sequence[Ring]) -> list[Ring]:
    """The whole pairs, from the first on, that are enabled."""
    enabled = list(itertools.takewhile(lambda ring: ring.enabled, rings))
    return enabled[: len(enabled) & ~1]


# --- requests, in the order of the document --------------------------------------------------

_Fds = Sequence[Handle]


def _get_features(session: Session, payload: Empty, fds: _Fds) -> U64:
    return U64(value=session.offered)


def _set_features(session: Session, payload: U64, fds: _Fds) -> None:
    unknown = payload.value & ~(session.offered | _OF_THE_VMM)
    if unknown:
        raise BackendError(
            f"The vhost-user front end accepts features that were not offered: {unknown:#x}."
        )
    session.features = payload.value


def _get_protocol_features(session: Session, payload: Empty, fds: _Fds) -> U64:
    return U64(value=session.offered_protocol)


def _set_protocol_features(session: Session, payload: U64, fds: _Fds) -> None:
    unknown = payload.value & ~int(session.offered_protocol)
    if unknown:
        raise BackendError(
            f"The vhost-user front end accepts protocol features not offered: {unknown:#x}."
        )
    session.protocol_features = ProtocolFeature(payload.value)


def _set_owner(session: Session, payload: Empty, fds: _Fds) -> None:
    """We serve one front end a connection: it is the owner."""


def _reset_owner(session: Session, payload: Empty, fds: _Fds) -> None:
    """Deprecated. "Back-ends should either ignore this message, or use it to disable rings"."""
    for ring in session.rings:
        ring.enabled = False
        _replace(ring, "kick", None)


def _set_mem_table(session: Session, payload: MemoryTable, fds: _Fds) -> None:
    session.regions = payload.regions


def _get_queue_num(session: Session, payload: Empty, fds: _Fds) -> U64:
    return U64(value=len(session.rings))


def _ring(session: Session, index: int) -> Ring:
    if index >= len(session.rings):
        raise BackendError(f"The vhost-user front end names ring {index} of {len(session.rings)}.")
    return session.rings[index]


def _set_vring_num(session: Session, payload: VringState, fds: _Fds) -> None:
    ring = _ring(session, payload.index)
    ring.named = True
    ring.size = payload.num


def _set_vring_addr(session: Session, payload: VringAddresses, fds: _Fds) -> None:
    ring = _ring(session, payload.index)
    ring.named = True
    ring.addresses = payload


def _set_vring_base(session: Session, payload: VringState, fds: _Fds) -> None:
    ring = _ring(session, payload.index)
    if payload.num > MAX_INDEX:
        raise BackendError(f"Ring {payload.index} can't begin at index {payload.num}.")
    ring.named = True
    ring.base = payload.num


def _get_vring_base(session: Session, payload: VringState, fds: _Fds) -> VringState:
    """Stops the ring: it is complete again with its next kick."""
    ring = _ring(session, payload.index)
    _replace(ring, "kick", None)
    return VringState(index=ring.index, num=ring.base)


def _set_vring_kick(session: Session, payload: VringFd, fds: _Fds) -> None:
    ring = _ring(session, payload.index)
    if not payload.has_fd:
        raise BackendError(
            "The vhost-user front end wants its rings polled, without kick descriptors.",
            remedy="Run the VMM with ioeventfd on (its default).",
        )
    ring.named = True
    _replace(ring, "kick", fds[0])


def _set_vring_call(session: Session, payload: VringFd, fds: _Fds) -> None:
    _replace(_ring(session, payload.index), "call", fds[0] if fds else None)


def _set_vring_err(session: Session, payload: VringFd, fds: _Fds) -> None:
    _replace(_ring(session, payload.index), "err", fds[0] if fds else None)


def _replace(ring: Ring, name: str, handle: Handle | None) -> None:
    if handle is not None:
        handle.prepare_signal()
    old: Handle | None = getattr(ring, name)
    setattr(ring, name, handle)
    if old is not None:
        old.close()


def _set_vring_enable(session: Session, payload: VringState, fds: _Fds) -> None:
    if payload.num > 1:
        raise BackendError(f"SET_VRING_ENABLE with {payload.num}: neither 0 nor 1.")
    ring = _ring(session, payload.index)
    ring.enabled = bool(payload.num)
    ring.named = ring.named or ring.enabled


def _set_backend_req_fd(session: Session, payload: ChannelFd, fds: _Fds) -> None:
    old, session._channel = session._channel, fds[0]
    if old is not None:
        old.close()


def _get_config(session: Session, payload: ConfigSpace, fds: _Fds) -> ConfigSpace:
    data = session.device.read_config(payload.offset, len(payload.data))
    if len(data) != len(payload.data):
        raise ValueError(f"{session.device!r} gave {len(data)} bytes, not {len(payload.data)}.")
    return attrs.evolve(payload, data=data)


def _set_config(session: Session, payload: ConfigSpace, fds: _Fds) -> None:
    session.device.write_config(payload.offset, payload.data)


# --- which requests end a run ------------------------------------------------------------------


def _never(session: Session, payload: Payload) -> bool:
    return False


def _always(session: Session, payload: Payload) -> bool:
    return True


def _on_new_features(session: Session, payload: U64) -> bool:
    return session.features != payload.value


def _on_switch(session: Session, payload: VringState) -> bool:
    return payload.index < len(session.rings) and session.rings[payload.index].enabled != bool(
        payload.num
    )


_ALWAYS_NEGOTIATED = ProtocolFeature(0)


@attrs.frozen
class _Rule:
    serve: Callable[[Session, Any, _Fds], Payload | None]
    stops: Callable[[Session, Any], bool] = _never
    needs: ProtocolFeature = _ALWAYS_NEGOTIATED


_RULES: Mapping[Request, _Rule] = {
    Request.GET_FEATURES: _Rule(_get_features),
    Request.SET_FEATURES: _Rule(_set_features, _on_new_features),
    Request.SET_OWNER: _Rule(_set_owner),
    Request.RESET_OWNER: _Rule(_reset_owner, _always),
    Request.SET_MEM_TABLE: _Rule(_set_mem_table, _always),
    Request.SET_VRING_NUM: _Rule(_set_vring_num, _always),
    Request.SET_VRING_ADDR: _Rule(_set_vring_addr, _always),
    Request.SET_VRING_BASE: _Rule(_set_vring_base, _always),
    Request.GET_VRING_BASE: _Rule(_get_vring_base, _always),
    Request.SET_VRING_KICK: _Rule(_set_vring_kick, _always),
    Request.SET_VRING_CALL: _Rule(_set_vring_call),
    Request.SET_VRING_ERR: _Rule(_set_vring_err),
    Request.GET_PROTOCOL_FEATURES: _Rule(_get_protocol_features),
    Request.SET_PROTOCOL_FEATURES: _Rule(_set_protocol_features),
    Request.GET_QUEUE_NUM: _Rule(_get_queue_num, needs=ProtocolFeature.MQ),
    Request.SET_VRING_ENABLE: _Rule(_set_vring_enable, _on_switch),
    Request.SET_BACKEND_REQ_FD: _Rule(_set_backend_req_fd, needs=ProtocolFeature.BACKEND_REQ),
    Request.GET_CONFIG: _Rule(_get_config, needs=ProtocolFeature.CONFIG),
    Request.SET_CONFIG: _Rule(_set_config, needs=ProtocolFeature.CONFIG),
}
