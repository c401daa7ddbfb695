"""What one life of the daemon's comes to: states, causes, and where it may go."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.attempts import MAX_ATTEMPTS
from microvm_guest.openvpn.causes import REMEDIES, SENTENCES
from microvm_guest.openvpn.config import Remote
from microvm_guest.openvpn.states import ENDED, TABLE, VpnReason, VpnState, after
from microvm_guest.openvpn.status import LogBudget

from .sessions import ATTEMPT, ME, SERVER, R, S, connected, feed, session, state


def test_an_attempt_that_goes_well() -> None:
    one = session()
    steps = feed(one, m.Hold(wait_s=10), *ATTEMPT)
    assert steps[0] == s.Wait(0)  # the first time nobody has to wait
    assert s.FindWay("vpn.example.com", 1194, "udp") in steps
    assert s.Send(b'username "Auth" "me"\n') in steps
    assert s.Send(b'password "Auth" "secret"\n') in steps
    assert steps[-1] == s.OpenWay(("10.8.0.1",), False)
    assert one.status.state is S.AUTHENTICATING, "it is up when the way is open, and no sooner"
    assert one.way_is_open(5.0) == [s.Tell()]
    status = one.status
    assert (status.state, status.since, status.connects) == (S.CONNECTED, 5.0, 1)
    assert (status.local_ip, status.dns) == ("10.8.0.2", ("10.8.0.1",))


def test_secrets_are_not_shown_in_steps() -> None:
    assert "secret" not in repr(feed(session(), *ATTEMPT))


def test_ones_own_name_servers_come_before_those_pushed() -> None:
    one = s.Session(ME, [SERVER], ("9.9.9.9",))
    assert feed(one, *ATTEMPT)[-1] == s.OpenWay(("9.9.9.9",), False)


def test_a_break_shuts_the_way_before_anything_else() -> None:
    one = connected()
    steps = feed(one, state("RECONNECTING", "ping-restart"))
    assert steps == [s.ShutWay(), s.Tell()]
    assert (one.status.state, one.status.reason) == (S.RECONNECTING, R.SERVER_UNREACHABLE)
    assert one.status.local_ip is None
    assert feed(one, m.Hold(wait_s=10)) == [s.Wait(10)]
    assert feed(one, m.Hold(wait_s=100_000)) == [s.Wait(s.MAX_HOLD_S)]


def test_a_daemon_that_begins_anew_without_saying_so_is_down() -> None:
    """Row 93: its words are the guest's."""
    one = connected()
    assert feed(one, state("WAIT")) == [s.ShutWay(), s.Tell()]
    assert one.status.state is S.RECONNECTING


def test_one_that_was_up_tries_for_ever() -> None:
    one = connected()
    for _ in range(50):
        feed(one, state("RECONNECTING", "server_poll"), *ATTEMPT[:2])
        assert one.status.state is S.RECONNECTING
    feed(one, *ATTEMPT)
    one.way_is_open(9.0)
    assert (one.status.state, one.status.connects) == (S.CONNECTED, 2)


def test_a_way_that_opens_too_late_is_shut_again() -> None:
    """The route is set while the daemon says that the connection broke."""
    one = session()
    feed(one, *ATTEMPT)
    feed(one, state("RECONNECTING", "connection-reset"))
    assert one.way_is_open(2.0) == [s.ShutWay()]
    assert one.status.connects == 0


def test_a_way_that_can_not_be_opened_fails_the_first_time_and_is_tried_again_later() -> None:
    one = session()
    feed(one, *ATTEMPT)
    assert s.Send(b"signal SIGTERM\n") in one.way_failed("no routes", 2.0)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.PROTOCOL)
    assert one.way_failed("no routes", 2.0) == []
    one = connected()
    feed(one, state("RECONNECTING", "ping-restart"))
    assert one.way_failed("no routes", 3.0) == [], "the daemon is at it already"
    feed(one, *ATTEMPT)
    assert one.way_failed("no routes", 4.0) == [s.Send(b"signal SIGUSR1\n")]
    assert feed(one, state("RECONNECTING", "SIGUSR1")) == [s.ShutWay(), s.Tell()]


@pytest.mark.parametrize("remotes", [1, 3])
def test_each_server_is_tried_once_before_one_gives_up(remotes: int) -> None:
    one = session(remotes)
    for number in range(1, remotes + 1):
        assert one.status.state is S.CONNECTING
        steps = feed(one, *ATTEMPT[:2], state("RECONNECTING", "server_poll"))
        assert (s.Send(b"signal SIGTERM\n") in steps) == (number == remotes)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.SERVER_UNREACHABLE)
    assert one.error().remedy


def attempts(one: s.Session, untried: list[int], *servers: Remote) -> int:
    """How many it takes until it is given up. Of each the name has so many addresses left."""
    for number, left in enumerate(untried):
        server = servers[number % len(servers)] if servers else SERVER
        (find, _) = feed(one, m.Remote(host=server.host, port=server.port, proto="udp"))
        assert isinstance(find, s.FindWay)
        told = one.found(find, "192.0.2.7", left)
        assert told == [s.Send(f"remote MOD 192.0.2.7 {server.port}\n".encode())]
        steps = feed(one, state("WAIT"), state("RECONNECTING", "server_poll"))
        if s.Send(b"signal SIGTERM\n") in steps:
            assert (one.status.state, one.status.reason) == (S.FAILED, R.SERVER_UNREACHABLE)
            return number + 1
    raise AssertionError("it is not given up")


def test_each_address_of_a_name_is_tried_before_one_gives_up() -> None:
    assert attempts(session(), [0] * 9) == 1
    assert attempts(session(), [2, 1, 0, 2, 1, 0]) == 3
    assert attempts(session(2), [2, 1, 0, 2, 1, 0]) == 3, "one name in two lines"


def test_each_address_of_each_name_is() -> None:
    """OpenVPN takes them in turn, so who has fewer is tried again meanwhile."""
    a, b = SERVER, Remote(host="b", port=443, proto="udp")
    assert attempts(s.Session(ME, [a, b]), [0, 2, 0, 1, 0, 0, 0, 2], a, b) == 6
    assert attempts(s.Session(ME, [a, b]), [1, 2, 0, 1, 1, 0, 0, 2], a, b) == 6


def test_there_is_an_end_to_a_name_that_has_ever_more_addresses() -> None:
    assert attempts(session(), [7] * 99) == MAX_ATTEMPTS
    assert attempts(session(30), [7] * 99) == 30, (
        "each server that the configuration names is tried"
    )


def test_an_address_that_is_found_too_late_is_not_told() -> None:
    one = session()
    (find, _) = feed(one, ATTEMPT[0])
    assert isinstance(find, s.FindWay)
    one.broke("nonsense", 2.0)
    assert one.found(find, "192.0.2.7", 3) == []


@pytest.mark.parametrize("proto", ["", "udp5", "tcp-server", "udp-client-x", "udp\n"])
def test_a_protocol_that_openvpn_does_not_have_is_none(proto: str) -> None:
    """Row 93: what has been tried is kept by server and protocol."""
    one = session()
    steps = feed(one, m.Remote(host=SERVER.host, port=SERVER.port, proto=proto))
    assert s.Send(b"signal SIGTERM\n") in steps
    assert one.status.reason is R.PROTOCOL


def test_a_name_that_is_not_found_is_passed_over_for_the_next_server() -> None:
    """But for the last of them: OpenVPN ends when all were passed over."""
    other = Remote(host="b", port=443, proto="udp")
    one = s.Session(ME, [SERVER, other])
    feed(one, *ATTEMPT)
    one.way_is_open(1.0)
    feed(one, state("RECONNECTING", "ping-restart"))
    skip = s.Send(b"remote SKIP\n")
    for _ in range(3):
        (find, _) = feed(one, m.Remote(host="b", port=443, proto="udp"))
        assert one.no_way(R.NAME_NOT_FOUND, "", 2.0) == [skip, s.Tell()]
        (find, _) = feed(one, ATTEMPT[0])
        for _ in range(3):
            again = s.FindWay(SERVER.host, SERVER.port, "udp", after_s=s.RETRY_NAME_S)
            assert one.no_way(R.NAME_NOT_FOUND, "", 2.0) == [again, s.Tell()]
        assert isinstance(find, s.FindWay)
        one.found(find, "192.0.2.7", 0)
        feed(one, state("WAIT"), state("RECONNECTING", "server_poll"))


def test_while_the_daemon_waits_for_us_it_can_not_be_told_to_restart() -> None:
    one = session()
    assert not one.is_waited_for
    (find, _) = feed(one, ATTEMPT[0])
    assert isinstance(find, s.FindWay)
    assert one.is_waited_for
    one.no_way(R.NAME_NOT_FOUND, "", 1.0)
    one = session(2)
    (find, _) = feed(one, ATTEMPT[0])
    assert isinstance(find, s.FindWay)
    one.found(find, "192.0.2.7", 0)
    assert not one.is_waited_for
    (ask,) = feed(one, m.NeedPassword(realm="Auth", username=True, challenge="Code?"))
    assert isinstance(ask, s.Ask)
    assert one.is_waited_for
    one.answered(ask.challenge, "1", 1.0)
    assert not one.is_waited_for


def test_a_restart_of_our_own_is_no_failed_attempt() -> None:
    """After a sleep of the host's, while it still connects."""
    one = session()
    feed(one, *ATTEMPT[:3], state("RECONNECTING", "SIGUSR1"))
    assert one.status.state is S.CONNECTING


# --- where it may go -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", 22),
        ("169.254.169.254", 80),
        ("vpn.example.com", 22),
        ("VPN.example.com", 1194),
        ("a.example", 1194),
        ("", 0),
    ],
)
@pytest.mark.parametrize("begin", [session, connected])
def test_a_server_that_the_configuration_does_not_name_is_not_gone_to(
    begin: Callable[[], s.Session], host: str, port: int
) -> None:
    """Nor is its name asked for: a daemon taken over would have any door of the host's opened."""
    one = begin()
    steps = feed(one, m.Remote(host=host, port=port, proto="tcp-client"))
    assert not [step for step in steps if isinstance(step, s.FindWay)]
    assert s.Send(b"signal SIGTERM\n") in steps
    assert (one.status.state, one.status.reason) == (S.FAILED, R.PROTOCOL)
    assert f"{host}:{port}, which the configuration does not name" in one.status.detail
    assert feed(one, ATTEMPT[0]) == []


def test_each_server_that_it_names_is() -> None:
    other = Remote(host="b", port=443, proto="tcp")
    one = s.Session(ME, [SERVER, other])
    for name in (SERVER, other):
        step = feed(one, m.Remote(host=name.host, port=name.port, proto="tcp-client"))[0]
        assert step == s.FindWay(name.host, name.port, "tcp-client")


def test_a_way_that_is_not_found_fails_with_what_was_found_instead() -> None:
    one = session(2)
    said = "a is at 127.0.0.1: loopback."
    feed(one, ATTEMPT[0])
    assert one.no_way(R.NAME_REFUSED, said, 1.0) == [s.Send(b"remote SKIP\n"), s.Tell()]
    assert (one.status.state, one.status.reason) == (S.CONNECTING, R.NAME_REFUSED)
    feed(one, ATTEMPT[0])
    assert s.Send(b"signal SIGTERM\n") in one.no_way(R.NAME_REFUSED, said, 1.0)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.NAME_REFUSED)
    assert one.status.detail.endswith(said)
    assert "write the address" in (one.error().remedy or "")


# --- ends ------------------------------------------------------------------------------------


def test_how_it_ends_is_named() -> None:
    one = connected()
    assert one.ended([], 3.0, asked=False) == [s.ShutWay(), s.Tell()]
    assert (one.status.state, one.status.reason) == (S.FAILED, R.DAEMON_DIED)
    one = connected()
    assert s.ShutWay() in one.ended([], 3.0, asked=True)
    assert (one.status.state, one.status.reason) == (S.STOPPED, None)
    one = session()
    one.ended(["Options error: --tls-version-min: unknown"], 3.0, asked=False)
    assert one.status.reason is R.BAD_CONFIG
    assert "tls-version-min" in one.status.detail
    one = session()
    feed(one, m.Fatal(text="ERROR: Cannot open TUN/TAP dev /dev/net/tun: No such file"))
    one.ended([], 3.0, asked=False)
    assert one.status.reason is R.TUN_MISSING
    one = connected()
    feed(one, state("EXITING", "server-pushed-halt"))
    one.ended([], 3.0, asked=False)
    assert one.status.reason is R.SERVER_ENDED


@pytest.mark.parametrize("ended", sorted(ENDED))
def test_what_has_ended_stays_so(ended: VpnState) -> None:
    one = connected()
    if ended is S.FAILED:
        one.broke("nonsense", 2.0)
    else:
        one.ended([], 2.0, asked=True)
    before = one.status
    assert feed(one, *ATTEMPT) == []
    assert one.ended([], 3.0, asked=False) == []
    assert one.status == before


MESSAGES = st.sampled_from(
    [*ATTEMPT, m.Hold(wait_s=3), state("RECONNECTING", "tls-error"), state("EXITING"),
     state("NEW_STATE"), m.VerificationFailed(realm="Auth"), m.Fatal(text="x"), m.AuthToken(),
     m.UpDown(up=False, env={}), m.ByteCount(received=1, sent=2), m.End(), m.Unknown(kind="X"),
     m.LogText(flags="N", text="TLS Error: x")]
)  # fmt: skip


@given(st.lists(st.one_of(MESSAGES, st.just("open"), st.just("die")), max_size=60))
def test_the_way_is_open_only_while_it_is_up(story: list[object]) -> None:
    """Whatever a hostile daemon says in whatever order: each OpenWay is followed by a ShutWay
    before anything but *connected* is shown, and a failure is always told with its sentence."""
    one, is_open = session(2), False
    for part in story:
        if part == "open":
            steps = one.way_is_open(1.0) if is_open else []
        elif part == "die":
            steps = one.ended([], 1.0, asked=False)
        else:
            steps = one.take(part, 1.0)  # type: ignore[arg-type]
        for step in steps:
            if isinstance(step, s.OpenWay):
                is_open = True
            elif isinstance(step, s.ShutWay):
                is_open = False
        if one.status.state in (S.RECONNECTING, S.FAILED, S.STOPPED):
            assert not is_open
            assert one.status.local_ip is None
        if one.status.state is S.FAILED:
            assert one.error().message
            assert one.error().reason is one.status.reason


_KINDS = st.sampled_from(
    ["STATE:1,CONNECTED,", "STATE:1,RECONNECTING,", "PASSWORD:Need 'Auth' username/password",
     "PASSWORD:Need '", "PASSWORD:Verification Failed: 'Auth' ['CRV1:R:", "HOLD:", "LOG:1,I,",
     "REMOTE:", "UPDOWN:ENV,", "UPDOWN:UP", "NEED-OK:", "FATAL:", "INFOMSG:CR_TEXT:"]
)  # fmt: skip


@given(st.lists(st.tuples(_KINDS, st.text(max_size=60)), max_size=20))
def test_whatever_a_daemon_says_is_taken(lines: list[tuple[str, str]]) -> None:
    """Row 93: it is the guest's, and the guest is hostile."""
    text = "".join(f">{kind}{rest}\n" for kind, rest in lines)
    one = session()
    for message in m.ManagementParser().feed(text.encode("utf-8", "surrogatepass")):
        for step in one.take(message, 1.0):
            if isinstance(step, s.Ask):
                one.answered(step.challenge, "an answer\nsignal SIGTERM", 1.0)


# --- tables ----------------------------------------------------------------------------------


def test_each_state_has_a_row_and_each_reason_its_words() -> None:
    assert set(TABLE) == set(VpnState)
    assert set(SENTENCES) == set(REMEDIES) == set(VpnReason)


@pytest.mark.parametrize("where", sorted(VpnState))
def test_a_word_of_a_later_openvpn_changes_nothing(where: VpnState) -> None:
    assert after(where, "SOMETHING_NEW") is where


def test_a_flood_of_log_lines_is_thinned() -> None:
    """Row 93."""
    budget = LogBudget()
    passed = sum(budget.take(second / 1000) for second in range(10_000))
    assert passed <= 200 + 10 * 20
    assert budget.left_out > 0
    assert budget.take(1000.0)
    assert budget.left_out == 0
