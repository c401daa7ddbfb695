"""A real OpenVPN server in a network namespace of its own, with what lies behind it.

    with vpn_server(folder) as server:
        server.client_config(), server.address, server.restart(), server.kill()

The namespace hangs on the host by one veth pair. At the end of the tunnel are a web server and a
name server which nobody else can reach. The certificates are made by `openssl`, each time anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NAMESPACE = "mvvpn"
HOST_SIDE, SERVER = "10.99.7.1", "10.99.7.2"
"""The veth pair's addresses."""
INSIDE = "10.66.0.1"
"""The server's end of the tunnel."""
NAME = "inside.example"
WEB_PORT = 8000
CANARY_PORT = 9000
"""A listener at the namespace's outer address, which nothing should reach but by the tunnel."""
PORT = 1194
PAGE_MIB = int(os.environ.get("MICROVM_VPN_MIB") or 1)
"""Of what the web server has; a soak sets the variable (256, say)."""
ETH_P_ALL = 3
LOCK = Path(tempfile.gettempdir()) / "microvm-test-vpn.lock"


def missing() -> str | None:
    """Why there can be no server here, for `pytest.skip`; None if there can."""
    if os.geteuid() != 0:
        return "a VPN server in a network namespace needs root"
    lacking = [name for name in ("openvpn", "openssl", "ip") if shutil.which(name) is None]
    if lacking:
        return f"a VPN server needs {', '.join(lacking)}"
    if not os.path.exists("/dev/net/tun"):
        return "a VPN server needs /dev/net/tun"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else "network namespaces can't be made here"


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._new_key("ca", "/CN=test-ca", "-x509", "-days", "30")

    def _new_key(self, name: str, subject: str, *more: str) -> None:
        kind = "crt" if "-x509" in more else "csr"
        self._openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.{kind}", "-subj", subject, *more,
        )  # fmt: skip

    def issue(self, name: str, usage: str, *, expired: bool = False) -> None:
        """``NAME.key`` and ``NAME.crt``; one that is expired ended yesterday."""
        self._new_key(name, f"/CN={name}")
        (self.folder / "usage").write_text(f"extendedKeyUsage={usage}\nkeyUsage=digitalSignature\n")
        days = "-1" if expired else "30"
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.crt", "-days", days, "-extfile", "usage",
        )  # fmt: skip

    def encrypt(self, name: str, passphrase: str) -> None:
        """``NAME.enc.key``: the same key under a passphrase."""
        self._openssl(
            "pkey", "-in", f"{name}.key", "-aes256", "-passout", f"pass:{passphrase}",
            "-out", f"{name}.enc.key",
        )  # fmt: skip

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def read(self, name: str) -> str:
        """A file of its."""
        return (self.folder / name).read_text()


class VpnServer:
    """The server, its namespace, and what is behind it."""

    def __init__(self, folder: Path, proto: str, size: int) -> None:
        self.folder = folder
        self.proto = proto
        self.authority = Authority(folder / "ca")
        self.authority.issue("server", "serverAuth")
        self.authority.issue("expired-server", "serverAuth", expired=True)
        self.authority.issue("client", "clientAuth")
        self.authority.issue("expired-client", "clientAuth", expired=True)
        self.passwords = folder / "passwords"
        self.set_password("me", 'pass "word" \\ with all')
        self.web = folder / "web"
        self.web.mkdir()
        with (self.web / "data").open("wb") as file:
            digest = hashlib.sha256()
            for _ in range(size >> 16):
                piece = os.urandom(1 << 16)
                digest.update(piece)
                file.write(piece)
        self.digest = digest.hexdigest()
        self._process: subprocess.Popen[bytes] | None = None
        self.certificate = "server"
        self.keepalive: tuple[str, ...] = ("--keepalive", "1", "4")
        self.extra: tuple[str, ...] = ()

    def set_password(self, name: str, password: str) -> None:
        """The one user there is, from now on."""
        check = self.folder / "check"
        self.passwords.write_text(f"{name}\n{password}\n")
        check.write_text(f'#!/bin/sh\ncmp -s "$1" {self.passwords}\n')
        check.chmod(0o755)

    def client_config(self, *more: str, certificate: str = "client", host: str = SERVER) -> str:
        """For the client, files inline."""
        proto = "tcp-client" if self.proto == "tcp" else "udp"
        read = self.authority.read
        lines = (
            "client", "dev tun", f"proto {proto}", f"remote {host} {PORT}",
            "remote-cert-tls server", "persist-tun", "persist-key", "verb 3", "auth-user-pass",
            *more,
        )  # fmt: skip
        blocks = {
            "ca": read("ca.crt"),
            "cert": read(f"{certificate.removesuffix('.enc')}.crt"),
            "key": read(f"{certificate}.key"),
        }
        text = "".join(f"{line}\n" for line in lines)
        return text + "".join(f"<{name}>\n{body}</{name}>\n" for name, body in blocks.items())

    def start(self) -> None:
        """Start the daemon; returns when it listens."""
        read = self.authority.folder
        words = [
            "openvpn", "--mode", "server", "--tls-server", "--dev", "tun9", "--proto",
            "tcp-server" if self.proto == "tcp" else "udp", "--local", SERVER, "--port", str(PORT),
            "--server", "10.66.0.0", "255.255.255.0", "--topology", "subnet", "--dh", "none",
            "--ca", f"{read}/ca.crt", "--cert", f"{read}/{self.certificate}.crt",
            "--key", f"{read}/{self.certificate}.key", *self.keepalive,
            "--script-security", "2", "--auth-user-pass-verify", f"{self.folder}/check", "via-file",
            "--push", f"dhcp-option DNS {INSIDE}", "--push", "redirect-gateway def1",
            "--push", "persist-tun", "--duplicate-cn", "--verb", "3", *self.extra,
        ]  # fmt: skip
        log = (self.folder / "server.log").open("wb")
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", NAMESPACE, *words], stdout=log, stderr=log
        )
        log.close()
        for _ in range(200):
            if b"Initialization Sequence Completed" in (self.folder / "server.log").read_bytes():
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "server.log").read_text())

    def said(self) -> str:
        """Its log, since it was started last."""
        return (self.folder / "server.log").read_text()

    def saw_the_client_leave(self) -> bool:
        """Whether a client has said goodbye, and not merely fallen silent."""
        by = {"udp": "exit message received by peer", "tcp": "Connection reset, restarting"}
        return by[self.proto] in self.said()

    def kill(self) -> None:
        """It is gone, without a word to anybody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """The same, if it runs."""
        if self._process is not None:
            self.kill()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def vpn_server(
    folder: Path,
    proto: str = "udp",
    size: int = PAGE_MIB << 20,
    keepalive: tuple[str, str] = ("1", "4"),
) -> Iterator[VpnServer]:
    """The server running, and all that belongs to it. One at a time on a host: names and addresses
    are fixed."""
    with ExitStack() as stack:
        lock = stack.enter_context(LOCK.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (("link", "del", "mvvpn0"), ("netns", "del", NAMESPACE)):  # a killed test's
            subprocess.run(["ip", *words], check=False, capture_output=True)
        _ip("netns", "add", NAMESPACE)
        stack.callback(_ip, "netns", "del", NAMESPACE)
        _ip("link", "add", "mvvpn0", "type", "veth", "peer", "name", "mvvpn1", "netns", NAMESPACE)
        stack.callback(_ip, "link", "del", "mvvpn0")
        _ip("addr", "add", f"{HOST_SIDE}/30", "dev", "mvvpn0")
        _ip("link", "set", "mvvpn0", "up")
        for words in (
            ("addr", "add", f"{SERVER}/30", "dev", "mvvpn1"),
            ("link", "set", "mvvpn1", "up"),
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{INSIDE}/32", "dev", "lo"),
        ):
            _ip("-n", NAMESPACE, *words)
        routes = subprocess.run(["ip", "route", "show", "default"], check=True, capture_output=True)
        if not routes.stdout:
            # A host without a network, as the lab is: passt asks for an interface with a route.
            _ip("route", "add", "default", "via", SERVER, "dev", "mvvpn0")
        server = VpnServer(folder, proto, size)
        server.keepalive = ("--keepalive", *keepalive)
        behind = subprocess.Popen(
            ["ip", "netns", "exec", NAMESPACE, sys.executable, __file__, str(server.web)],
            stdout=subprocess.PIPE,
        )
        stack.callback(behind.wait)
        stack.callback(behind.kill)
        assert behind.stdout is not None
        stack.callback(behind.stdout.close)
        assert behind.stdout.readline() == b"ready\n"
        stack.callback(server.stop)
        server.start()
        yield server


class Wire:
    """What passes on the host's interfaces that is not the VPN's own, while the block lasts.

    Args:
        names: Host names that nobody should ask the host's network about.
    """

    def __init__(self, *names: str) -> None:
        self._names = [
            b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
            for name in names
        ]
        self._veth, self._all = (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) for _ in "12"
        )
        self._veth.bind(("mvvpn0", 0))

    def others(self) -> list[bytes]:
        """So far: IPv4 packets of the veth pair that are neither to nor from the VPN's port, nor
        ICMP; and of all interfaces whatever has one of the names in it, as a question for it has.
        """
        found = [frame for frame in _received(self._veth) if not _is_the_vpns(frame)]
        everywhere = _received(self._all)
        return found + [f for f in everywhere if any(name in f.lower() for name in self._names)]

    def close(self) -> None:
        self._veth.close()
        self._all.close()


def _received(watching: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield watching.recv(2048, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


def _is_the_vpns(frame: bytes) -> bool:
    if frame[12:14] != b"\x08\x00" or frame[23] not in (6, 17):
        return True
    at = 14 + (frame[14] & 15) * 4
    ports = int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")
    return PORT in ports


def _answer(query: bytes) -> bytes:
    """To a question for any name: the A record of INSIDE; nothing for other types."""
    end = query.index(b"\0", 12) + 5
    known = (
        query[12:end].startswith(b"\x06inside\x07example") and query[end - 4 : end - 2] == b"\0\1"
    )
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(INSIDE)
    return head + query[12:end] + (record if known else b"")


def _behind(folder: str) -> None:
    """In the namespace: web server, name server, canary."""
    import http.server
    import threading
    from functools import partial

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    web = http.server.ThreadingHTTPServer((INSIDE, WEB_PORT), partial(Quiet, directory=folder))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    canary = socket.create_server((SERVER, CANARY_PORT))

    def watch() -> None:
        while True:
            canary.accept()[0].close()

    threading.Thread(target=watch, daemon=True).start()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((INSIDE, 53))
    print("ready", flush=True)
    while True:
        query, address = names.recvfrom(512)
        names.sendto(_answer(query), address)


if __name__ == "__main__":
    _behind(sys.argv[1])
