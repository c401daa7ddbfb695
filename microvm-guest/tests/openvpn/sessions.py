"""Sessions without a daemon: what it says on the way up, and what a session makes of it."""

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.config import Remote
from microvm_guest.openvpn.credentials import Challenge, Credentials
from microvm_guest.openvpn.states import VpnReason, VpnState


async def nobody(challenge: Challenge) -> str:
    raise AssertionError(challenge)


ME = Credentials("me", "secret", key_passphrase="phrase", answer=nobody)
R, S = VpnReason, VpnState
SERVER = Remote(host="vpn.example.com", port=1194, proto="udp")


def state(name: str, detail: str = "", **more: str) -> m.StateLine:
    return m.StateLine(name=name, detail=detail, **more)


CONNECTED = state("CONNECTED", "SUCCESS", local_ip="10.8.0.2")
ATTEMPT = (
    m.Remote(host="vpn.example.com", port=1194, proto="udp"),
    state("WAIT"),
    state("AUTH"),
    m.NeedPassword(realm="Auth", username=True),
    state("GET_CONFIG"),
    m.UpDown(up=True, env={"foreign_option_1": "dhcp-option DNS 10.8.0.1"}),
    state("ASSIGN_IP", local_ip="10.8.0.2"),
    CONNECTED,
)


def session(remotes: int = 1, me: Credentials = ME) -> s.Session:
    return s.Session(me, [SERVER] * remotes)


def feed(one: s.Session, *messages: m.Message) -> list[s.Step]:
    return [step for message in messages for step in one.take(message, 1.0)]


def connected() -> s.Session:
    one = session()
    feed(one, *ATTEMPT)
    one.way_is_open(2.0)
    return one
