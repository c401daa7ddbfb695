"""Both ends of what is measured through proxies, each a process of its own.

    python -m tools.bench.socks_peer serve
    python -m tools.bench.socks_peer measure PROXY-PORT HOST PORT MIB ROUNDS

PROXY-PORT 0 is no proxy at all. A connection begins with what is wanted: ``E`` for an echo, or
``D`` and eight bytes for that many.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
from typing import Any

from microvm_guest.socks5.client_half import ClientHalf
from microvm_guest.socks5.wire import Destination, Reply
from tools.bench.stats import summary

MIB = 1024 * 1024
BLOCK = bytes(256 * 1024)


class Peer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive(self.request, 1) == b"E":
            while data := self.request.recv(65536):
                self.request.sendall(data)
            return
        left = int.from_bytes(receive(self.request, 8), "big")
        while left:
            piece = BLOCK[:left]
            self.request.sendall(piece)
            left -= len(piece)


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    daemon_threads = True


def receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (piece := sock.recv(length - len(data))):
        data += piece
    return data


def connect(proxy_port: int, target: Destination) -> socket.socket:
    address = ("127.0.0.1", proxy_port) if proxy_port else (target.host, target.port)
    sock = socket.create_connection(address, timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not proxy_port:
        return sock
    half = ClientHalf(target)
    while half.answer is None:
        sock.sendall(half.outgoing())
        half.feed(sock.recv(half.missing))
    if half.answer.reply is not Reply.SUCCEEDED:
        raise SystemExit(f"the proxy answered {half.answer.reply!r}")
    return sock


def download(proxy_port: int, target: Destination, size: int) -> None:
    with connect(proxy_port, target) as sock:
        sock.sendall(b"D" + size.to_bytes(8, "big"))
        got = 0
        while piece := sock.recv(256 * 1024):
            got += len(piece)
    if got != size:
        raise SystemExit(f"{got} of {size} bytes came")


def rate(proxy_port: int, target: Destination, size: int, streams: int) -> float:
    share = size // streams
    threads = [
        threading.Thread(target=download, args=(proxy_port, target, share)) for _ in range(streams)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(share * streams / MIB / (time.perf_counter() - start), 2)


def round_trips(proxy_port: int, target: Destination, count: int) -> list[float]:
    samples = []
    with connect(proxy_port, target) as sock:
        sock.sendall(b"E")
        for _ in range(count):
            start = time.perf_counter()
            sock.sendall(bytes(64))
            receive(sock, 64)
            samples.append((time.perf_counter() - start) * 1e6)
    return samples


def connects(proxy_port: int, target: Destination, count: int) -> list[float]:
    """Until the other end has answered: some proxies say that it worked before it has."""
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        with connect(proxy_port, target) as sock:
            sock.sendall(b"Ex")
            receive(sock, 1)
            samples.append((time.perf_counter() - start) * 1e6)
    return samples


def measure(proxy_port: int, target: Destination, size_mib: int, rounds: int) -> dict[str, Any]:
    connects(proxy_port, target, 3)
    return {
        "mib_s_1_stream": rate(proxy_port, target, size_mib * MIB, 1),
        "mib_s_16_streams": rate(proxy_port, target, size_mib * MIB, 16),
        "connect_us": summary(connects(proxy_port, target, rounds)),
        "round_trip_64_bytes_us": summary(round_trips(proxy_port, target, rounds)),
    }


def main() -> None:
    if sys.argv[1] == "serve":
        with Server(("127.0.0.1", 0), Peer) as server:
            print(server.server_address[1], flush=True)
            server.serve_forever()
    proxy_port, host, port, size_mib, rounds = sys.argv[2:]
    target = Destination(host, int(port))
    print(json.dumps(measure(int(proxy_port), target, int(size_mib), int(rounds))))


if __name__ == "__main__":
    main()
