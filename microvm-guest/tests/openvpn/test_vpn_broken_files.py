"""A configuration in which one thing is broken, given to the OpenVPN of this host: the session
reads from what that says what is wrong. Nothing is sent to anybody."""

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from microvm_guest.openvpn import session as s
from microvm_guest.openvpn.config import parse_config
from microvm_guest.openvpn.credentials import Credentials
from microvm_guest.openvpn.effective import MANAGEMENT, effective_config
from microvm_guest.openvpn.management import ManagementParser, command
from microvm_guest.openvpn.states import VpnReason, VpnState

pytestmark = [
    pytest.mark.skipif(
        shutil.which("openvpn") is None or shutil.which("openssl") is None,
        reason="needs openvpn and openssl",
    )
]

CERTIFICATE, KEY, OTHER_KEY = "%CERTIFICATE%", "%KEY%", "%OTHER KEY%"
NONSENSE = "nonsense\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate, its key, and another's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("me", "other"):
        subprocess.run(
            ["openssl", "req", "-x509", "-new", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.crt",
             "-subj", f"/CN={name}"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    files = {CERTIFICATE: "me.crt", KEY: "me.key", OTHER_KEY: "other.key"}
    return {name: (folder / file).read_text() for name, file in files.items()}


def end_of(text: str, folder: Path) -> s.Session:
    """What a session comes to with this configuration, and the real daemon."""
    config = parse_config(text, lambda name: b"")
    place = folder / "management"
    told = effective_config(config, None).replace(MANAGEMENT, str(place))
    session = s.Session(Credentials("me", "secret"), config.remotes)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        with subprocess.Popen(
            ["openvpn", "--config", "stdin"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as daemon:  # fmt: skip
            assert daemon.stdin is not None
            assert daemon.stdout is not None
            daemon.stdin.write(told)
            daemon.stdin.close()
            listener.settimeout(0.1)
            stream = None
            while stream is None and daemon.poll() is None:
                with contextlib.suppress(TimeoutError):
                    stream = listener.accept()[0]
            if stream is not None:
                with stream, contextlib.suppress(ConnectionError):
                    _talk(stream, session)
            printed = daemon.stdout.read().splitlines()
    session.ended(printed, time.time(), asked=False)
    return session


def _talk(stream: socket.socket, session: s.Session) -> None:
    stream.settimeout(30)
    parser = ManagementParser()
    steps = session.begin()
    while True:
        for step in steps:
            if isinstance(step, s.Send):
                stream.sendall(step.data)
            elif isinstance(step, s.Wait):
                stream.sendall(command("hold", "release"))
            elif isinstance(step, s.FindWay):
                stream.sendall(command("remote", "MOD", "127.0.0.1", "9"))
        data = stream.recv(4096)
        if not data:
            return
        steps = [one for message in parser.feed(data) for one in session.take(message, time.time())]


def block(name: str, text: str) -> str:
    return f"<{name}>\n{text}</{name}>\n"


OWN = block("ca", CERTIFICATE)
PAIR = OWN + block("cert", CERTIFICATE) + block("key", KEY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (block("ca", NONSENSE), "Cannot load CA certificate file"),
        (block("ca", ""), "Cannot load CA certificate file"),
        (OWN + block("cert", NONSENSE) + block("key", KEY), "no start line"),
        (OWN + block("cert", CERTIFICATE) + block("key", NONSENSE), "Cannot load private key"),
        (OWN + block("cert", CERTIFICATE) + block("key", OTHER_KEY), "key values mismatch"),
        (OWN + block("cert", CERTIFICATE), "If you use one of --cert or --key"),
        (block("pkcs12", "bm9uc2Vuc2U=\n"), "Error reading inline PKCS#12 file"),
        (PAIR + block("extra-certs", NONSENSE), "Error reading extra certificate"),
        (OWN + block("tls-auth", NONSENSE), "Insufficient key material"),
        (OWN + block("tls-crypt", NONSENSE), "Insufficient key material"),
        (OWN + block("tls-crypt-v2", NONSENSE), "invalid tls-crypt-v2 client key"),
        (OWN + "data-ciphers NOSUCH\n", "Unsupported cipher in --data-ciphers: NOSUCH"),
        (OWN + "cipher NOSUCH\n", "NOSUCH"),
        (OWN + "auth NOSUCH\n", "NOSUCH"),
        (OWN + "tls-cipher NOSUCH\n", "NOSUCH"),
        (OWN + "tls-groups NOSUCH\n", "NOSUCH"),
        (OWN + "tls-cert-profile NOSUCH\n", "NOSUCH"),
        (OWN + "tun-mtu\n", "tun-mtu"),
    ],
)
def test_what_is_broken_is_named_and_quoted(
    made: dict[str, str], tmp_path: Path, text: str, words: str
) -> None:
    for name, contents in made.items():
        text = text.replace(name, contents)
    session = end_of(f"client\nremote 192.0.2.1 1194\nauth-user-pass\n{text}", tmp_path)
    status = session.status
    assert (status.state, status.reason) == (VpnState.FAILED, VpnReason.BAD_CONFIG)
    assert words in status.detail
    assert "dns-updown" not in status.detail
