"""`microvm.sync` with a Linux guest, and forwards to what listens in it."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from microvm import GuestRefused
from microvm.forwards import TcpAddress
from microvm.sync import Machine, TooSlowError, fail_after
from microvm.testing.census import Census

pytestmark = pytest.mark.linux_guest

MIB = 1024 * 1024
BOUND_S = 120


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        with fail_after(BOUND_S):
            machine.wait_ready()
            machine.run(["sh", "-c", "mkdir -p /www && echo from the guest >/www/index.html"])
            machine.run(["httpd", "-p", "127.0.0.1:8080", "-h", "/www"], check=True)
        yield machine


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=BOUND_S) as answer:
        data: bytes = answer.read()
        return data


def test_commands_and_their_streams(machine: Machine) -> None:
    assert machine.run(["echo", "hello"], check=True).stdout == b"hello\n"
    with machine.spawn(["sort"]) as process:
        process.stdin.write(b"b\na\n")
        process.stdin.close()
        assert list(process.stdout) == [b"a\n", b"b\n"]
        assert process.wait().exit_code == 0
    with pytest.raises(TooSlowError), fail_after(0.2):
        machine.run(["sleep", "1000"])
    assert b"sleep 1000" not in machine.run(["ps"]).stdout


def test_several_threads_run_commands_at_once(machine: Machine) -> None:
    said: dict[int, bytes] = {}

    def work(number: int) -> None:
        said[number] = machine.run(["echo", str(number)]).stdout

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert said == {n: b"%d\n" % n for n in range(20)}


def test_a_tcp_port_of_the_guests_is_a_port_of_the_hosts(machine: Machine) -> None:
    with machine.forward(guest_port=8080) as forward:
        assert get(f"http://{forward.address}/") == b"from the guest\n"
    with machine.forward(guest_port=8081) as forward, pytest.raises(ConnectionError):
        get(f"http://{forward.address}/")
    with pytest.raises(GuestRefused, match="Connection refused"):
        machine.wait_ready().connect_to(TcpAddress(port=8081))


def test_8_mib_each_way_with_half_closes_arrive_whole(machine: Machine) -> None:
    data = os.urandom(8 * MIB)
    listen = ["nc", "-l", "-p", "7007", "-e", "cat"]
    with machine.spawn(listen), machine.forward(guest_port=7007) as forward:
        sock = connect_when_listening(machine, forward.address)
        with sock, sock.makefile("rb") as file:
            sender = threading.Thread(target=send_and_end, args=(sock, data))
            sender.start()
            assert file.read() == data
            sender.join(BOUND_S)


def connect_when_listening(machine: Machine, address: object) -> socket.socket:
    with fail_after(BOUND_S):
        while b":7007 " not in machine.run(["netstat", "-ltn"]).stdout:
            time.sleep(0.05)
    assert isinstance(address, TcpAddress)
    return socket.create_connection((address.host, address.port), timeout=BOUND_S)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_100_connections_at_once(machine: Machine) -> None:
    """As many as a busy guest's httpd serves, which makes a process for each: of 200 it was seen to
    reset one."""
    with machine.forward(guest_port=8080) as forward:
        assert isinstance(forward.address, TcpAddress)
        where = (forward.address.host, forward.address.port)
        socks = [socket.create_connection(where, timeout=BOUND_S) for _ in range(100)]
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        for sock in socks:
            with sock, sock.makefile("rb") as file:
                assert file.read().endswith(b"from the guest\n")
        with fail_after(BOUND_S):
            while forward.connections:
                machine.wait_ready().ping()


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from the host\n")

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def host_service() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_service_of_the_hosts_is_a_port_of_the_guests(machine: Machine) -> None:
    with host_service() as port, machine.expose(port=port, guest_port=0) as exposed:
        url = f"http://{exposed.address}/"
        assert machine.run(["wget", "-q", "-O", "-", url], check=True).stdout == b"from the host\n"
        with pytest.raises(Exception, match="Address already in use"):
            machine.expose(port=port, guest_port=8080)
    assert not machine.run(["wget", "-q", "-O", "-", url]).success


def test_unix_sockets_on_both_sides(machine: Machine, tmp_path: Path) -> None:
    """Out of the guest to a path on the host, and from a path on the host back into it."""
    door = tmp_path / "door"
    with (
        host_service() as port,
        machine.expose(port=port, guest_path="/run/out.sock"),
        machine.forward(guest_path="/run/out.sock", path=door),
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.settimeout(BOUND_S)
        sock.connect(str(door))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as file:
            assert file.read().endswith(b"from the host\n")
    assert not door.exists()


# --- what is left ------------------------------------------------------------------------------


def test_nothing_but_the_loop_is_left_behind() -> None:
    with Machine() as machine:  # the loop is there from here on
        machine.wait_ready()
    before = Census.take()
    with Machine() as machine, machine.forward(guest_port=80):
        assert machine.run(["true"]).success
    assert Census.take() == before


@pytest.mark.qemu
@pytest.mark.parametrize(
    "ending", ["", "sys.exit(3)", "raise ValueError", "os.fork() or os._exit(0)"]
)
def test_a_program_that_ends_without_leaving_its_machine_leaves_no_qemu(ending: str) -> None:
    body = f"""
import os, sys
from microvm.sync import Machine
machine = Machine().__enter__()
machine.run(["true"], check=True)
for task in os.listdir("/proc/self/task"):
    print(open(f"/proc/self/task/{{task}}/children").read(), flush=True)
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    children = {int(word) for word in done.stdout.split()}
    assert children, done.stderr
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
