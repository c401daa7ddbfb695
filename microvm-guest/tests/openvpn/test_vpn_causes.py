"""Why a tunnel failed or ended: read from what OpenVPN logs, prints and says last."""

import pytest

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.causes import cause_in, more_telling
from microvm_guest.openvpn.states import VpnReason

from .sessions import ATTEMPT, R, S, connected, feed, session, state

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


# --- ends ------------------------------------------------------------------------------------


WRONG = [
    "Cannot load CA certificate file [[INLINE]] (no entries were read)",
    "Cannot load inline certificate file",
    "Error reading inline PKCS#12 file",
    "Error reading extra certificate",
    "Insufficient key material or header text not found in file '[[INLINE]]' (0/128/256 bytes "
    "found/min/max)",
    "Non-Hex, unprintable character (0x00) found at line 9 in key file '[[INLINE]]' (64/128/256 "
    "bytes found/min/max)",
    "ERROR: invalid tls-crypt-v2 client key format",
    "Cipher NOSUCH not supported",
    "Message hash algorithm 'NOSUCH' not found",
    "Failed to set restricted TLS cipher list: NOSUCH",
    "Failed to set restricted TLS 1.3 cipher list: NOSUCH",
    "Failed to set allowed TLS group list: NOSUCH",
    "ERROR: Invalid cert profile: NOSUCH",
]
"""What OpenVPN 2.6.14 says last of a configuration in which one thing is broken."""


@pytest.mark.parametrize("text", WRONG)
def test_what_is_broken_in_a_configuration_is_told_in_openvpns_words(text: str) -> None:
    one = session()
    why = m.LogText(flags="N", text="OpenSSL: error:0A00018E:SSL routines::ca md too weak:")
    feed(one, ATTEMPT[0], why, m.LogText(flags="F", text=text), m.Fatal(text=text))
    one.ended([], 3.0, asked=False)
    assert (one.status.state, one.status.reason) == (S.FAILED, R.BAD_CONFIG)
    assert one.status.detail.count(text) == 1
    assert "ca md too weak" in one.status.detail


def test_a_crl_that_is_none_is_a_broken_configuration() -> None:
    one = session()
    lines = ("CRL: cannot read CRL from file [[INLINE]]", "VERIFY ERROR: depth=0, error=CRL not "
             "loaded: CN=server, serial=1", "TLS Error: TLS handshake failed")  # fmt: skip
    logs = [m.LogText(flags="W", text=line) for line in lines]
    feed(one, *ATTEMPT[:3], *logs, state("RECONNECTING", "tls-error"))
    assert (one.status.state, one.status.reason) == (S.FAILED, R.BAD_CONFIG)
    assert "cannot read CRL" in one.status.detail


@pytest.mark.parametrize("asked", [False, True])
def test_a_private_key_that_can_not_be_read_is_broken_if_no_passphrase_was_asked_for(
    asked: bool,
) -> None:
    """Of the server's certificate and the key that is not its own, too."""
    one = session()
    feed(one, *ATTEMPT[:2])
    if asked:
        feed(one, m.NeedPassword(realm="Private Key", username=False))
    text = "Cannot load private key file [[INLINE]]"
    broken = m.LogText(flags="W", text=text)
    feed(one, broken, state("RECONNECTING", "private-key-password-failure"))
    assert one.status.state is S.FAILED
    assert one.status.reason is (R.KEY_PASSPHRASE if asked else R.BAD_CONFIG)
    assert (text in one.status.detail) != asked


def test_a_directive_that_is_pushed_and_not_known_is_no_broken_configuration() -> None:
    one = session()
    pushed = "Options error: Unrecognized option or missing or extra parameter(s) in "
    feed(
        one, *ATTEMPT[:3], m.LogText(flags="W", text=f"{pushed}[PUSH-OPTIONS]:3: novelty (2.6.14)")
    )
    feed(one, state("RECONNECTING", "connection-reset"))
    assert one.status.reason is R.SERVER_UNREACHABLE


def test_of_all_that_was_printed_the_lines_that_tell_are_quoted() -> None:
    """As OpenVPN prints it: the first with the time of day, and long notices around."""
    noise = (
        "2026-11-26 07:08:26 Note: --cipher is not set. OpenVPN versions before 2.5 " + "x" * 300
    )
    told = (
        "Unsupported cipher in --data-ciphers: NOSUCH",
        "Options error: --data-ciphers list contains unsupported ciphers or is too long.",
    )
    printed = [noise, f"2026-11-26 07:08:26 {told[0]}", told[1], "Use --help for more information."]
    one = session()
    one.ended(printed, 3.0, asked=False)
    assert one.status.reason is R.BAD_CONFIG
    assert one.status.detail == f"OpenVPN does not accept the configuration. {' '.join(told)}"


def test_what_is_quoted_is_bounded_and_the_last_counts() -> None:
    one = session()
    one.ended([f"Options error: {number} " + "x" * 120 for number in range(9)], 3.0, asked=False)
    assert "Options error: 8" in one.status.detail
    assert len(one.status.detail) < s.MAX_SAID + 60
    one = session()
    one.ended(["Options error: " + "y" * 9000], 3.0, asked=False)
    assert "Options error: yyy" in one.status.detail
    assert len(one.status.detail) < s.MAX_SAID + 60


@pytest.mark.parametrize(
    ("word", "log", "reason", "words"),
    [
        ("inactive", "Inactivity timeout (--inactive), exiting", R.IDLE, "not used"),
        ("session-timeout", "Session timeout, exiting", R.SERVER_ENDED, "as the server allows"),
        ("ping-exit", "[server] Inactivity timeout (--ping-exit), exiting", R.SERVER_UNREACHABLE,
         "does not answer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("goodbye", [False, True])
def test_a_daemon_that_ends_by_itself_has_not_died(
    word: str, log: str, reason: VpnReason, words: str, goodbye: bool
) -> None:
    """Where it says goodbye to its server, the log alone says why."""
    one = connected()
    said = "exit-with-notification" if goodbye else word
    feed(one, m.LogText(flags="I", text=log), state("EXITING", said))
    one.ended([], 3.0, asked=False)
    assert (one.status.state, one.status.reason) == (S.FAILED, reason)
    assert words in one.status.detail
    assert "memory" not in (one.error().remedy or "")


def test_the_more_telling_cause_counts() -> None:
    assert cause_in("nothing of note") is None
    assert more_telling(R.TLS_FAILED, R.SERVER_CERTIFICATE_EXPIRED) is R.SERVER_CERTIFICATE_EXPIRED
    assert more_telling(R.SERVER_CERTIFICATE_EXPIRED, R.TLS_FAILED) is R.SERVER_CERTIFICATE_EXPIRED
    assert more_telling(None, R.TLS_FAILED) is R.TLS_FAILED
