"""What a daemon asks of the user: passwords, tokens and challenges, and what is kept from it."""

import attrs
import pytest

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.causes import SENTENCES
from microvm_guest.openvpn.credentials import Challenge, Credentials

from .sessions import ATTEMPT, ME, R, S, connected, feed, session, state


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
