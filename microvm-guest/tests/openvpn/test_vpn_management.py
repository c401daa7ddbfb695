"""OpenVPN's management protocol: whole, byte by byte, and as a hostile guest would send it."""

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn.errors import ManagementError
from microvm_guest.openvpn.words import split

SESSION = b""">INFO:OpenVPN Management Interface Version 5 -- type 'help' for more info
SUCCESS: real-time log notification set to ON\r
>HOLD:Waiting for hold release:10
SUCCESS: hold release succeeded
>REMOTE:vpn.example.com,1194,udp
>STATE:1101519562,RESOLVE,,,,,,
>LOG:1101519562,I,VERIFY OK: depth=0, CN=server
>PASSWORD:Need 'Auth' username/password
>PASSWORD:Need 'Auth' username/password SC:1,Please enter token PIN
>PASSWORD:Need 'Private Key' password
>PASSWORD:Verification Failed: 'Auth'
>PASSWORD:Verification Failed: 'Auth' ['go away']
>PASSWORD:Verification Failed: 'Auth' ['CRV1:R,E:Om01u7:Y3Ix:Your PIN: now']
>PASSWORD:Verification Failed: ['CRV1:R:Om01u7:Y3Ix:Your PIN']
>PASSWORD:Auth-Token:foobar
>UPDOWN:UP
>UPDOWN:ENV,foreign_option_1=dhcp-option DNS 10.0.0.1
>UPDOWN:ENV,odd==
>UPDOWN:ENV,END
>STATE:1101519563,CONNECTED,SUCCESS,10.8.0.2,192.0.2.1,1194,,,fd00::2
>BYTECOUNT:11,22
>NEED-OK:Need 'token-insertion-request' confirmation MSG:Please insert your token
>STATE:1101519564,RECONNECTING,ping-restart,,,,,
>NEW-IN-3.0:whatever
ERROR: unknown command
TITLE,OpenVPN
END
>FATAL:Error: private key password verification failed
"""
MESSAGES = [
    m.InfoText(text="OpenVPN Management Interface Version 5 -- type 'help' for more info"),
    m.Success(text="real-time log notification set to ON"),
    m.Hold(wait_s=10),
    m.Success(text="hold release succeeded"),
    m.Remote(host="vpn.example.com", port=1194, proto="udp"),
    m.StateLine(name="RESOLVE"),
    m.LogText(flags="I", text="VERIFY OK: depth=0, CN=server"),
    m.NeedPassword(realm="Auth", username=True),
    m.NeedPassword(realm="Auth", username=True, challenge="Please enter token PIN", echo=True),
    m.NeedPassword(realm="Private Key", username=False),
    m.VerificationFailed(realm="Auth"),
    m.VerificationFailed(realm="Auth", said="go away"),
    m.VerificationFailed(
        realm="Auth",
        challenge=m.DynamicChallenge(
            state_id="Om01u7", username="cr1", text="Your PIN: now", echo=True, wants_answer=True
        ),
    ),
    m.VerificationFailed(
        realm="Auth",
        challenge=m.DynamicChallenge(
            state_id="Om01u7", username="cr1", text="Your PIN", echo=False, wants_answer=True
        ),
    ),
    m.AuthToken(),
    m.UpDown(up=True, env={"foreign_option_1": "dhcp-option DNS 10.0.0.1", "odd": "="}),
    m.StateLine(
        name="CONNECTED",
        detail="SUCCESS",
        local_ip="10.8.0.2",
        remote_ip="192.0.2.1",
        remote_port="1194",
        local_ip6="fd00::2",
    ),
    m.ByteCount(received=11, sent=22),
    m.NeedOk(kind="NEED-OK", name="token-insertion-request", text="Please insert your token"),
    m.StateLine(name="RECONNECTING", detail="ping-restart"),
    m.Unknown(kind="NEW-IN-3.0"),
    m.Failure(text="unknown command"),
    m.Body(text="TITLE,OpenVPN"),
    m.End(),
    m.Fatal(text="Error: private key password verification failed"),
]


def parsed(*pieces: bytes) -> list[m.Message]:
    parser = m.ManagementParser()
    return [message for piece in pieces for message in parser.feed(piece)]


def test_a_session_is_read_whole() -> None:
    assert parsed(SESSION) == MESSAGES


def test_and_byte_by_byte() -> None:
    assert parsed(*(bytes((byte,)) for byte in SESSION)) == MESSAGES


@given(st.lists(st.integers(0, len(SESSION)), max_size=8))
def test_and_in_any_pieces(cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(SESSION)]
    pieces = (SESSION[a:b] for a, b in itertools.pairwise(marks))
    assert parsed(*pieces) == MESSAGES


def test_what_trails_without_an_end_is_no_message_yet() -> None:
    assert parsed(SESSION + b">STATE:1,CONN") == MESSAGES


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_whatever_comes_is_messages_or_a_protocol_error(pieces: list[bytes]) -> None:
    parser = m.ManagementParser()
    for piece in pieces:
        try:
            parser.feed(piece)
        except ManagementError:
            return


_KINDS = st.sampled_from(
    ["STATE:", "PASSWORD:", "PASSWORD:Need '", "PASSWORD:Verification Failed: ", "HOLD:", "LOG:",
     "BYTECOUNT:", "REMOTE:", "UPDOWN:", "UPDOWN:ENV,", "NEED-OK:", "FATAL:"]
)  # fmt: skip


@given(st.lists(st.tuples(_KINDS, st.text(max_size=80)), max_size=20))
def test_known_kinds_with_anything_behind_them_are_messages(lines: list[tuple[str, str]]) -> None:
    text = "".join(f">{kind}{rest}\n" for kind, rest in lines)
    m.ManagementParser().feed(text.encode("utf-8", "surrogatepass"))


def texts_of(value: object) -> list[str]:
    """Every text that a message has in it."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in texts_of(one)]
    if attrs.has(type(value)):
        return [text for one in attrs.astuple(value, recurse=False) for text in texts_of(one)]
    return []


HOSTILE = st.text(
    st.sampled_from("a,:'=\x1b[]0;\x07\x9b\u202e\u2066\u200b\r\t\x00\x7f\xe9"), max_size=40
)


@given(st.lists(st.tuples(st.one_of(_KINDS, HOSTILE), HOSTILE), max_size=20))
def test_whatever_text_is_in_a_message_can_be_seen(lines: list[tuple[str, str]]) -> None:
    """It comes to terminals and logs, where an escape sequence would be obeyed."""
    text = "".join(f">{kind}{rest}\n{rest}\n" for kind, rest in lines)
    for message in m.ManagementParser().feed(text.encode()):
        assert all(part.isprintable() for part in texts_of(message))


def test_an_escape_is_shown_as_one() -> None:
    raw = b">PASSWORD:Verification Failed: 'Auth' ['\x1b]0;x\x07\xff']\n"
    assert parsed(raw) == [m.VerificationFailed(realm="Auth", said=r"\x1b]0;x\x07\xff")]


@pytest.mark.parametrize("said", ["CRV1:R:Om01u7:Y3Ix:PIN", "CRV1:broken:Om01u7"])
def test_a_challenges_secret_is_not_told_as_the_servers_words(said: str) -> None:
    (message,) = parsed(f">PASSWORD:Verification Failed: 'Auth' ['{said}']\n".encode())
    assert "Om01u7" not in repr(message)


def test_a_line_without_end_is_refused_and_not_kept() -> None:
    """Row 93: a flood is bounded."""
    parser = m.ManagementParser()
    with pytest.raises(ManagementError, match="a line of more"):
        for _ in range(100):
            parser.feed(b">LOG:1,I," + b"x" * 1000)


def test_an_environment_without_end_is_refused() -> None:
    text = b"".join(b">UPDOWN:ENV,n%d=1\n" % number for number in range(m.MAX_ENV + 1))
    with pytest.raises(ManagementError, match="an environment of more"):
        m.ManagementParser().feed(text)


@given(st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=("Cs",))))
def test_a_secret_reaches_the_daemon_as_it_is(secret: str) -> None:
    """Whatever is in it, it is one word of one line: nothing in it becomes a command."""
    raw = m.password("Auth", secret)
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    assert split(raw.decode()[:-1]) == ["password", "Auth", secret]


@pytest.mark.parametrize("secret", ["two\nlines", "a\rb", "a\0b", "x" * 5000])
def test_a_secret_that_can_not_be_said_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="It has"):
        m.quoted(secret)


def test_answers_to_challenges_are_written_as_the_protocol_has_them() -> None:
    assert m.static_response("pass", "123456") == "SCRV1:cGFzcw==:MTIzNDU2"
    challenge = m.DynamicChallenge(
        state_id="Om01", username="me", text="?", echo=True, wants_answer=True
    )
    assert m.dynamic_response(challenge, "42") == "CRV1::Om01::42"
    assert "Om01" not in repr(challenge)
