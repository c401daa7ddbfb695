"""What one life of the daemon's comes to: states, causes, secrets and what is to be done."""

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.causes import REMEDIES, SENTENCES, cause_in, more_telling
from microvm_guest.openvpn.config import Remote
from microvm_guest.openvpn.credentials import Challenge, Credentials
from microvm_guest.openvpn.states import ENDED, TABLE, VpnReason, VpnState, after
from microvm_guest.openvpn.status import LogBudget


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


def test_a_restart_of_our_own_is_no_failed_attempt() -> None:
    """After a sleep of the host's, while it still connects."""
    one = session()
    feed(one, *ATTEMPT[:3], state("RECONNECTING", "SIGUSR1"))
    assert one.status.state is S.CONNECTING


LOGS = [
    (("TLS Error: TLS key negotiation failed to occur within 60 seconds (check your network)",
      "TLS Error: TLS handshake failed"), R.SERVER_UNREACHABLE),
    (("VERIFY ERROR: depth=0, error=certificate has expired: CN=server, serial=1",
      "OpenSSL: error:0A000086:SSL routines::certificate verify failed",
      "TLS Error: TLS handshake failed"), R.SERVER_CERTIFICATE_EXPIRED),
    (("VERIFY ERROR: depth=1, error=unable to get local issuer certificate: CN=x",
      "TLS Error: TLS handshake failed"), R.SERVER_CERTIFICATE_REFUSED),
    (("VERIFY X509NAME ERROR: CN=other, must be server", "TLS_ERROR: BIO read"),
     R.SERVER_CERTIFICATE_REFUSED),
    (("OpenSSL: error:0A000415:SSL routines::sslv3 alert certificate expired",
      "TLS Error: TLS handshake failed"), R.OWN_CERTIFICATE_EXPIRED),
    (("tls-crypt unwrap error: packet authentication failed",
      "TLS Error: TLS handshake failed"), R.TLS_FAILED),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "reason"), LOGS, ids=[str(reason) for _, reason in LOGS])
def test_the_log_says_why_the_handshake_failed(lines: tuple[str, ...], reason: VpnReason) -> None:
    one = session()
    logs = [m.LogText(flags="N", text=line) for line in lines]
    feed(one, *ATTEMPT[:3], *logs, state("RECONNECTING", "tls-error"))
    assert (one.status.state, one.status.reason) == (S.FAILED, reason)


def test_a_warning_of_ones_own_expired_certificate_counts_when_it_fails() -> None:
    one = session()
    warning = m.LogText(flags="W", text="WARNING: Your certificate has expired!")
    handshake = m.LogText(flags="N", text="TLS key negotiation failed to occur within 60 seconds")
    feed(one, warning, *ATTEMPT[:3], handshake, state("RECONNECTING", "tls-error"))
    assert one.status.reason is R.OWN_CERTIFICATE_EXPIRED


def test_an_earlier_attempts_cause_is_not_the_later_ones() -> None:
    one = session(2)
    refused = m.LogText(flags="N", text="VERIFY ERROR: depth=0, error=certificate has expired: x")
    feed(one, *ATTEMPT[:3], refused, state("RECONNECTING", "tls-error"))
    feed(one, *ATTEMPT[:2], state("RECONNECTING", "server_poll"))
    assert one.status.reason is R.SERVER_UNREACHABLE


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
    assert one.no_way(R.NAME_REFUSED, said, 1.0) == [s.Tell()]
    assert (one.status.state, one.status.reason) == (S.CONNECTING, R.NAME_REFUSED)
    assert s.Send(b"signal SIGTERM\n") in one.no_way(R.NAME_REFUSED, said, 1.0)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.NAME_REFUSED)
    assert one.status.detail.endswith(said)
    assert "write the address" in (one.error().remedy or "")


# --- secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("me", [Credentials(), Credentials("me"), Credentials(password="x")])
def test_a_password_that_nobody_gave_is_missing(me: Credentials) -> None:
    one = session(me=me)
    feed(one, *ATTEMPT[:4])
    assert one.status.reason is R.CREDENTIALS_MISSING


def test_a_keys_passphrase() -> None:
    need = m.NeedPassword(realm="Private Key", username=False)
    assert feed(session(), need) == [s.Send(b'password "Private Key" "phrase"\n')]
    one = session(me=Credentials("me", "secret"))
    feed(one, need)
    assert one.status.reason is R.KEY_PASSPHRASE
    one = session()
    feed(one, m.VerificationFailed(realm="Private Key"))
    assert one.status.reason is R.KEY_PASSPHRASE


def test_what_no_vpn_should_ask_for_is_not_given() -> None:
    one = session()
    steps = feed(one, m.NeedPassword(realm="HTTP Proxy", username=True))
    assert s.Send(b"signal SIGTERM\n") in steps
    assert "secret" not in str([step.data for step in steps if isinstance(step, s.Send)])


def test_a_refusal_is_named_with_the_servers_words_whenever_it_comes() -> None:
    for one in (session(), connected()):
        steps = feed(one, m.VerificationFailed(realm="Auth", said="account closed"))
        assert (one.status.state, one.status.reason) == (S.FAILED, R.AUTH_FAILED)
        assert one.status.detail.endswith("account closed")
        assert (s.ShutWay() in steps) == (one.status.connects == 1)


REFUSED = m.VerificationFailed(realm="Auth")
BY_TOKEN = state("RECONNECTING", "auth-failure (auth-token)")
FOR_NOW = state("RECONNECTING", "auth-temp-failure (server temporary reject)")


def test_a_token_that_is_refused_is_followed_by_the_password_and_is_no_failure() -> None:
    """The server was restarted, say: its tokens' key was its own."""
    one = session()
    feed(one, *ATTEMPT[:4], m.AuthToken(), *ATTEMPT[4:])
    one.way_is_open(2.0)
    assert feed(one, REFUSED) == []
    assert feed(one, BY_TOKEN) == [s.ShutWay(), s.Tell()]
    assert (one.status.state, one.status.reason) == (S.RECONNECTING, None)
    assert s.Send(b'password "Auth" "secret"\n') in feed(one, *ATTEMPT)
    one.way_is_open(3.0)
    assert one.status.state is S.CONNECTED
    feed(one, REFUSED)
    assert one.status.reason is R.AUTH_FAILED, "this time it was the password"


def test_each_token_excuses_one_refusal() -> None:
    one = connected()
    feed(one, m.AuthToken(), REFUSED, BY_TOKEN, *ATTEMPT[:5], REFUSED)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.AUTH_FAILED)


def test_a_token_refused_before_it_ever_was_up_is_no_failed_attempt() -> None:
    one = session()
    feed(one, *ATTEMPT[:4], m.AuthToken(), REFUSED, BY_TOKEN)
    assert one.status.state is S.CONNECTING


def test_a_token_is_no_excuse_for_a_keys_passphrase() -> None:
    one = connected()
    feed(one, m.AuthToken(), m.VerificationFailed(realm="Private Key"))
    assert one.status.reason is R.KEY_PASSPHRASE


def test_a_token_is_spent_by_a_challenge_too() -> None:
    one = connected()
    challenge = m.DynamicChallenge(
        state_id="x", username="me", text="PIN?", echo=False, wants_answer=True
    )
    feed(one, m.AuthToken(), m.VerificationFailed(realm="Auth", challenge=challenge))
    feed(one, state("RECONNECTING", "auth-failure (auth-token)"), REFUSED)
    assert one.status.reason is R.AUTH_FAILED


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("TEMP", ""),
        ("TEMP:come later", " come later"),
        ("TEMP[backoff 60,advance no]: full: 9 of 9", " full: 9 of 9"),
    ],
)
def test_a_server_that_refuses_for_now_is_tried_again(said: str, words: str) -> None:
    refused = m.VerificationFailed(realm="Auth", said=said)
    detail = SENTENCES[R.REFUSED_FOR_NOW] + words
    never_up = session()
    for _ in range(3):
        feed(never_up, *ATTEMPT[:5])
        assert feed(never_up, refused) == []
        assert feed(never_up, FOR_NOW) == [s.Tell()]
        status = never_up.status
        assert (status.state, status.reason) == (S.CONNECTING, R.REFUSED_FOR_NOW)
        assert status.detail == detail
        assert feed(never_up, m.Hold(wait_s=60)) == [s.Wait(60)], "as long as it has asked for"
        assert feed(never_up, m.Hold(wait_s=86400)) == [s.Wait(s.MAX_BACKOFF_S)]
    was_up = connected()
    feed(was_up, refused, FOR_NOW)
    assert (was_up.status.state, was_up.status.detail) == (S.RECONNECTING, detail)
    for one in (never_up, was_up):
        feed(one, *ATTEMPT)
        one.way_is_open(9.0)
        assert (one.status.state, one.status.reason) == (S.CONNECTED, None)


def test_a_refusal_for_now_is_not_the_next_attempts_cause() -> None:
    one = session()
    feed(one, *ATTEMPT[:5], m.VerificationFailed(realm="Auth", said="TEMP:full"), FOR_NOW)
    feed(one, *ATTEMPT[:2], state("RECONNECTING", "server_poll"))
    assert (one.status.state, one.status.reason) == (S.FAILED, R.SERVER_UNREACHABLE)
    assert "full" not in one.status.detail


def test_a_refusal_for_now_leaves_the_token() -> None:
    """OpenVPN keeps it, and it is what the server refuses next."""
    one = connected()
    feed(one, m.AuthToken(), m.VerificationFailed(realm="Auth", said="TEMP"), FOR_NOW)
    feed(one, *ATTEMPT[:5], REFUSED, BY_TOKEN)
    assert one.status.state is S.RECONNECTING


def test_a_static_challenge_is_asked_and_answered_with_the_password() -> None:
    one = session()
    need = m.NeedPassword(realm="Auth", username=True, challenge="PIN?", echo=True)
    (step,) = feed(one, need)
    assert step == s.Ask(Challenge(text="PIN?", echo=True))
    assert isinstance(step, s.Ask)
    assert one.answered(step.challenge, "12", 1.0) == [
        s.Send(b'username "Auth" "me"\n'),
        s.Send(b'password "Auth" "SCRV1:c2VjcmV0:MTI="\n'),
    ]
    assert one.answered(step.challenge, "12", 1.0) == [], "each question is answered once"


def test_a_dynamic_challenge_is_answered_when_it_is_asked_for() -> None:
    one = session()
    challenge = m.DynamicChallenge(
        state_id="Om01", username="me2", text="PIN?", echo=False, wants_answer=True
    )
    feed(one, *ATTEMPT[:4])
    feed(one, m.VerificationFailed(realm="Auth", said="", challenge=challenge))
    feed(one, state("RECONNECTING", "auth-failure"))
    assert one.status.state is not S.FAILED, "it is no refusal"
    (step,) = feed(one, m.NeedPassword(realm="Auth", username=True))
    assert isinstance(step, s.Ask)
    assert one.answered(step.challenge, "42", 1.0) == [
        s.Send(b'username "Auth" "me2"\n'),
        s.Send(b'password "Auth" "CRV1::Om01::42"\n'),
    ]


def test_a_challenge_that_nobody_can_answer_is_named() -> None:
    me = attrs.evolve(ME, answer=None)
    one = session(me=me)
    feed(one, m.NeedPassword(realm="Auth", username=True, challenge="PIN?"))
    assert one.status.reason is R.CHALLENGE
    assert "PIN?" in one.status.detail
    one = session()
    feed(one, m.InfoText(text="WEB_AUTH::https://sso.example/"))
    assert one.status.reason is R.CHALLENGE


def test_lines_that_may_hold_secrets_are_not_passed_on() -> None:
    for text in (
        "PUSH: 'PUSH_REPLY,auth-token SESS_ID_AT_x'",
        "MANAGEMENT: CMD 'username me'",
        "AUTH: Received control message: AUTH_FAILED,CRV1:R,E:c3RhdGU:bWU=:Your PIN",
    ):
        assert feed(session(), m.LogText(flags="I", text=text)) == []


# --- ends ------------------------------------------------------------------------------------


def test_how_it_ends_is_named() -> None:
    one = connected()
    assert one.ended("", 3.0, asked=False) == [s.ShutWay(), s.Tell()]
    assert (one.status.state, one.status.reason) == (S.FAILED, R.DAEMON_DIED)
    one = connected()
    assert s.ShutWay() in one.ended("", 3.0, asked=True)
    assert (one.status.state, one.status.reason) == (S.STOPPED, None)
    one = session()
    one.ended("Options error: --tls-version-min: unknown", 3.0, asked=False)
    assert one.status.reason is R.BAD_CONFIG
    assert "tls-version-min" in one.status.detail
    one = session()
    feed(one, m.Fatal(text="ERROR: Cannot open TUN/TAP dev /dev/net/tun: No such file"))
    one.ended("", 3.0, asked=False)
    assert one.status.reason is R.TUN_MISSING
    one = connected()
    feed(one, state("EXITING", "server-pushed-halt"))
    one.ended("", 3.0, asked=False)
    assert one.status.reason is R.SERVER_ENDED


@pytest.mark.parametrize("ended", sorted(ENDED))
def test_what_has_ended_stays_so(ended: VpnState) -> None:
    one = connected()
    if ended is S.FAILED:
        one.broke("nonsense", 2.0)
    else:
        one.ended("", 2.0, asked=True)
    before = one.status
    assert feed(one, *ATTEMPT) == []
    assert one.ended("", 3.0, asked=False) == []
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
            steps = one.ended("", 1.0, asked=False)
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


@pytest.mark.parametrize("user", ["YQpi", "YWI=", "!!", ""])
def test_a_challenges_user_name_can_not_become_a_command(user: str) -> None:
    """``YQpi`` has a line end in it."""
    one = session()
    line = f">PASSWORD:Verification Failed: 'Auth' ['CRV1:R:id:{user}:PIN?']\n"
    need = ">PASSWORD:Need 'Auth' username/password\n"
    messages = m.ManagementParser().feed((line + need).encode())
    (step,) = feed(one, *messages)
    assert isinstance(step, s.Ask)
    for answer in one.answered(step.challenge, "42", 1.0):
        assert isinstance(answer, s.Send)
        assert answer.data.count(b"\n") == 1


def test_an_answer_that_can_not_be_sent_is_a_failure_and_no_crash() -> None:
    one = session()
    (step,) = feed(one, m.NeedPassword(realm="Auth", username=True, challenge="PIN?"))
    assert isinstance(step, s.Ask)
    one.answered(step.challenge, "x" * 10_000, 1.0)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.CHALLENGE)


# --- tables ----------------------------------------------------------------------------------


def test_each_state_has_a_row_and_each_reason_its_words() -> None:
    assert set(TABLE) == set(VpnState)
    assert set(SENTENCES) == set(REMEDIES) == set(VpnReason)


@pytest.mark.parametrize("where", sorted(VpnState))
def test_a_word_of_a_later_openvpn_changes_nothing(where: VpnState) -> None:
    assert after(where, "SOMETHING_NEW") is where


def test_the_more_telling_cause_counts() -> None:
    assert cause_in("nothing of note") is None
    assert more_telling(R.TLS_FAILED, R.SERVER_CERTIFICATE_EXPIRED) is R.SERVER_CERTIFICATE_EXPIRED
    assert more_telling(R.SERVER_CERTIFICATE_EXPIRED, R.TLS_FAILED) is R.SERVER_CERTIFICATE_EXPIRED
    assert more_telling(None, R.TLS_FAILED) is R.TLS_FAILED


def test_a_flood_of_log_lines_is_thinned() -> None:
    """Row 93."""
    budget = LogBudget()
    passed = sum(budget.take(second / 1000) for second in range(10_000))
    assert passed <= 200 + 10 * 20
    assert budget.left_out > 0
    assert budget.take(1000.0)
    assert budget.left_out == 0
