"""The guest's SOCKS5 server, run beside us: what it says, carries and withstands.

Long; what it says in the handshake and what it carries would part.
"""

import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm_guest.socks5.server_half import Asked, ServerHalf
from microvm_guest.socks5.wire import Destination, Reply, encode_destination

MIB = 1024 * 1024
GREETING = b"\x05\x01\x00"
HALF_OPEN = 256
"""MAX_HALF_OPEN of socks5.c."""


@contextmanager
def serving(program, *, user="0", wrap=()):
    """A server, and its address; it must not have failed when the block is left."""
    argv = [*wrap, str(program), "--socks5", "127.0.0.1", "0", "0", user]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            host, port, vsock_port = line.split()
            assert vsock_port == b"0"
            yield host.decode(), int(port), process.pid
            assert process.poll() is None
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-signal.SIGTERM, b"")


@pytest.fixture(scope="module")
def server(agent):
    with serving(agent.program) as address:
        yield address[:2]


@contextmanager
def service():
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        listener.settimeout(30)
        yield listener, listener.getsockname()[1]


def dial(server, raw=b""):
    sock = socket.create_connection(server, timeout=30)
    sock.sendall(raw)
    return sock


def receive(sock, length):
    data = b""
    while len(data) < length and (piece := sock.recv(length - len(data))):
        data += piece
    return data


def receive_all(sock):
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass  # it had more of ours than it wanted to read
    return data


def request(host, port):
    return b"\x05\x01\x00" + encode_destination(Destination(host, port))


@contextmanager
def through(server, listener, host="127.0.0.1"):
    """A client's socket and the accepted one that it leads to."""
    with dial(server, GREETING + request(host, listener.getsockname()[1])) as client:
        assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"
        there, _ = listener.accept()
        there.settimeout(30)
        with there:
            yield client, there


# --- what it says ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "0x7f000001"])
def test_an_address_or_a_name_is_connected_to(server, host):
    with service() as (listener, _), through(server, listener, host) as (client, there):
        client.sendall(b"to")
        assert there.recv(9) == b"to"
        there.sendall(b"fro")
        assert client.recv(9) == b"fro"


def test_ipv6_is_connected_to_and_the_address_is_told(server):
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listener,
        dial(server, GREETING + request("::1", listener.getsockname()[1])) as client,
    ):
        raw = receive(client, 2 + 22)
        there, address = listener.accept()
        there.close()
    assert raw[2:6] == b"\x05\x00\x00\x04"
    assert raw[6:22] == socket.inet_pton(socket.AF_INET6, "::1")
    assert struct.unpack(">H", raw[22:]) == (address[1],)


@pytest.mark.parametrize(
    ("host", "reply"),
    [("127.0.0.1", Reply.CONNECTION_REFUSED), ("::1", Reply.CONNECTION_REFUSED)],
)
def test_nobody_there_is_connection_refused(server, host, reply):
    with socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as s:
        port = s.getsockname()[1]
    with dial(server, GREETING + request(host, port)) as client:
        assert receive_all(client)[2:4] == bytes((5, reply))


def test_a_name_that_there_is_not_is_host_unreachable(server):
    with dial(server, GREETING + request("no-such-host.invalid", 80)) as client:
        assert receive_all(client)[2:4] == bytes((5, Reply.HOST_UNREACHABLE))


def test_byte_by_byte_and_with_the_streams_first_bytes_behind(server):
    with service() as (listener, port), dial(server) as client:
        for byte in GREETING + request("localhost", port):
            client.sendall(bytes((byte,)))
        there, _ = listener.accept()
        with there:
            assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"
    with (
        service() as (listener, port),
        dial(server, GREETING + request("localhost", port) + b"early"),
    ):
        there, _ = listener.accept()
        with there:
            assert there.recv(9) == b"early"


MESSAGES = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda methods, head, rest: bytes((5, len(methods))) + methods + b"\x05" + head + rest,
        st.sampled_from([b"\x00", b"\x02\x00", b""]),
        st.binary(min_size=2, max_size=2),
        st.binary(max_size=300),
    ),
    st.builds(
        lambda command, kind, rest: GREETING + bytes((5, command, 0, kind)) + rest,
        st.sampled_from([0, 1, 1, 1, 2, 3, 9]),
        st.sampled_from([0, 1, 2, 3, 3, 3, 4, 5, 255]),
        st.binary(max_size=300),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(MESSAGES)
def test_it_says_what_the_hosts_half_says(server, raw):
    """Row 91, fuzzed: one protocol, two programs. Where one would connect, so does the other."""
    half = ServerHalf()
    half.feed(raw)
    expected = half.outgoing()
    if isinstance(half.event, Asked):
        return  # somebody's address: what is there is not for a test to knock at
    with dial(server, raw) as client:
        with suppress(OSError):  # it may have hung up by now
            client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == expected


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", Reply.CONNECTION_REFUSED),
        (b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x01\x00\x05", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (b"\x05\x01\x00\x03\x00", Reply.HOST_UNREACHABLE),
        (b"\x05\x01\x00\x03\x01\x00\x00\x50", Reply.HOST_UNREACHABLE),
    ],
    ids=["port 0", "bind", "udp", "type 5", "empty name", "NUL"],
)  # fmt: skip
def test_what_it_can_not_do_is_told(server, raw, answer):
    """Row 91."""
    with dial(server, GREETING + raw) as client:
        assert receive_all(client) == b"\x05\x00" + bytes((5, answer, 0, 1)) + bytes(6)


# --- what it carries -------------------------------------------------------------------------


def test_each_way_ends_by_itself(server):
    with service() as (listener, _), through(server, listener) as (client, there):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert (there.recv(99), there.recv(99)) == (b"question", b"")
        there.sendall(b"answer")
        there.shutdown(socket.SHUT_WR)
        assert (client.recv(99), client.recv(99)) == (b"answer", b"")


def test_a_reader_that_stops_holds_up_its_writer_and_nobody_else(server):
    """Not even itself: what it writes goes on, where microsocks waits in its write."""
    with service() as (listener, _), through(server, listener) as (client, slow):
        client.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 * MIB:
                sent += client.send(bytes(65536))
        slow.sendall(b"the other way")
        client.settimeout(30)
        assert client.recv(99) == b"the other way"
        with through(server, listener) as (other, there):
            other.sendall(b"through")
            assert there.recv(9) == b"through"


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def test_a_thousand_connections_cost_next_to_nothing(plain_agent, many_descriptors):
    """Debian's Dante takes 300 KiB for each, and does not give them back."""
    with serving(plain_agent.program) as (*server, pid), service() as (listener, _):
        before = resident_kib(pid)
        with ExitStack() as stack:
            pairs = [stack.enter_context(through(tuple(server), listener)) for _ in range(1000)]
            for number, (client, there) in enumerate(pairs):
                client.sendall(b"%d" % number)
                assert there.recv(9) == b"%d" % number
            assert resident_kib(pid) - before < 4096


# --- what it withstands ----------------------------------------------------------------------


def test_2000_who_say_nothing_make_way_for_one_who_does(plain_agent, many_descriptors):
    """Row 91: half-open connections are bounded, the oldest go, and memory is flat."""
    with serving(plain_agent.program) as (*server, pid), service() as (listener, _):
        server = tuple(server)
        with ExitStack() as stack:
            idle = [stack.enter_context(dial(server)) for _ in range(2000)]
            with through(server, listener) as (client, there):
                client.sendall(b"served")
                assert there.recv(9) == b"served"
            assert idle[0].recv(1) == b""
            assert len(os.listdir(f"/proc/{pid}/fd")) < HALF_OPEN + 50
            idle[-1].sendall(GREETING)
            assert receive(idle[-1], 2) == b"\x05\x00"


@pytest.mark.slow
def test_who_is_slow_to_say_what_it_wants_is_hung_up_on(server):
    """Row 91: the handshake has ten seconds, however it is dripped."""
    with dial(server) as client:
        begin = time.monotonic()
        client.settimeout(30)
        client.sendall(GREETING[:1])
        assert client.recv(1) == b""
        assert time.monotonic() - begin > 5


def test_a_client_that_leaves_while_its_name_is_looked_up_is_forgotten(server):
    for _ in range(50):
        dial(server, GREETING + request("no-such-host.invalid", 80)).close()
    with service() as (listener, _), through(server, listener) as (client, there):
        client.sendall(b"x")
        assert there.recv(1) == b"x"


# --- its user, and a rule for that user ------------------------------------------------------

in_a_network_of_its_own = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes a network namespace"
)


@in_a_network_of_its_own
def test_it_is_a_user_of_its_own_that_can_become_no_other(plain_agent):
    with (
        serving(plain_agent.program, user="1080") as (*_, pid),
        open(f"/proc/{pid}/status") as file,
    ):
        status = dict(line.split(":", 1) for line in file)
    assert status["Uid"].split() == ["1080"] * 4
    assert status["Gid"].split() == ["1080"] * 4
    assert status["Groups"].split() == []
    assert status["CapEff"].strip() == "0" * 16
    assert status["NoNewPrivs"].strip() == "1"


INSIDE = """
import fcntl, os, socket, struct, subprocess, sys, time
program, resolv, rule = sys.argv[1:]
def ip(words):
    subprocess.run(["ip", *words.split()], check=True)
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH", b"eth0", 0x1001))  # TUNSETIFF, TUN | NO_PI
ip("link set lo up")
ip("addr add 198.51.100.2/24 dev eth0")
ip("link set eth0 up")
ip("route add default via 198.51.100.1")
ip("route add unreachable default table 100")
if rule == "rule":
    ip("rule add pref 100 uidrange 1080-1080 table 100")
with open(resolv, "w") as file:
    file.write("nameserver 198.51.100.53\\n")
subprocess.run(["mount", "--bind", resolv, "/etc/resolv.conf"], check=True)
words = [program, "--socks5", "127.0.0.1", "0", "0", "1080"]
server = subprocess.Popen(words, stdout=subprocess.PIPE)
host, port, _ = server.stdout.readline().split()
for address in (b"\\x01\\x01\\x02\\x03\\x04", b"\\x03\\x0bexample.com"):
    sock = socket.create_connection((host.decode(), int(port)))
    sock.settimeout(3)
    begin = time.monotonic()
    sock.sendall(b"\\x05\\x01\\x00\\x05\\x01\\x00" + address + b"\\x00\\x50")
    answer = b""
    try:
        while len(answer) < 12:
            answer += sock.recv(99)
        print(answer[3], round(time.monotonic() - begin))
    except TimeoutError:
        print("silence")
server.kill()
server.wait()
ports = set()
try:
    while packet := os.read(tun, 2000):
        if packet[0] >> 4 == 4:
            ports.add(struct.unpack(">H", packet[22:24])[0])
except BlockingIOError:
    pass
print(sorted(ports))
"""


NAMES = r"""
import os, signal, socket, subprocess, sys, threading
program, resolv = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with open(resolv, "w") as file:
    file.write("nameserver 127.0.0.1\n")
subprocess.run(["mount", "--bind", resolv, "/etc/resolv.conf"], check=True)
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 53))
def answer():  # that there is no such name, and nothing of the slow ones
    while True:
        asked, who = names.recvfrom(512)
        if b"slow" not in asked:
            names.sendto(asked[:2] + b"\x81\x83" + asked[4:], who)
threading.Thread(target=answer, daemon=True).start()
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # as a guest of one CPU is
words = [program, "--socks5", "127.0.0.1", "0", "0", "0"]
server = subprocess.Popen(words, stdout=subprocess.PIPE)
host, port, _ = server.stdout.readline().split()
def ask(name):
    sock = socket.create_connection((host.decode(), int(port)))
    sock.settimeout(4)
    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x00\x50")
    return sock
def told(sock):
    answer = b""
    while len(answer) < 12:
        answer += sock.recv(99)
    return answer[3]
print(told(ask(b"quick")))
os.kill(server.pid, signal.SIGSTOP)
slow = [ask(b"slow%d" % number) for number in range(6)]
quick = ask(b"quick")
os.kill(server.pid, signal.SIGCONT)
print(told(quick))
server.kill()
server.wait()
"""


@in_a_network_of_its_own
def test_names_that_nobody_answers_for_hold_up_no_others(plain_agent, tmp_path):
    done = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "python3",
            "-c",
            NAMES,
            plain_agent.program,
            tmp_path / "r",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    unknown = Reply.HOST_UNREACHABLE
    assert (done.stdout, done.stderr) == (f"{unknown:d}\n" * 2, "")


def tunnel_down(program, tmp_path, rule):
    """What two clients are told where there is no tunnel, and to which ports packets went."""
    inside = [program, tmp_path / "resolv.conf", rule]
    done = subprocess.run(
        ["unshare", "--net", "--mount", "python3", "-c", INSIDE, *inside],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


@in_a_network_of_its_own
def test_a_tunnel_that_is_down_lets_nothing_out_and_is_told_at_once(plain_agent, tmp_path):
    """The kill switch: its user's only route is the tunnel's, and behind that `unreachable`.

    Nothing leaves by the ordinary network, not even the question for a name's address.
    """
    told = f"{Reply.HOST_UNREACHABLE:d} 0"
    assert tunnel_down(plain_agent.program, tmp_path, "rule") == [told, told, "[]"]
    leaks = tunnel_down(plain_agent.program, tmp_path, "no rule")
    assert leaks == ["silence", "silence", "[53, 80]"]


WITHOUT_IPV6 = """
import socket, subprocess, sys
program, hosts = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
for name in ("all", "lo"):
    with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
        file.write("1")
with open(hosts, "w") as file:
    file.write("::1 both.test\\n127.0.0.1 both.test\\n")
subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
words = [program, "--socks5", "127.0.0.1", "0", "0", "0"]
server = subprocess.Popen(words, stdout=subprocess.PIPE)
host, port, _ = server.stdout.readline().split()
for address in (b"\\x04" + bytes(15) + b"\\x01", b"\\x03\\x09both.test"):
    with socket.create_connection((host.decode(), int(port)), timeout=30) as sock:
        sock.sendall(b"\\x05\\x01\\x00\\x05\\x01\\x00" + address + b"\\x00\\x09")
        answer = b""
        while len(answer) < 12:
            answer += sock.recv(99)
        print(answer[3])
server.kill()
server.wait()
"""


@in_a_network_of_its_own
def test_without_ipv6_its_addresses_are_unreachable_and_hide_no_other_answer(plain_agent, tmp_path):
    inside = (str(plain_agent.program), str(tmp_path / "hosts"))
    done = subprocess.run(
        ["unshare", "--net", "--mount", "python3", "-c", WITHOUT_IPV6, *inside],
        capture_output=True,
        text=True,
        check=False,
    )
    replies = [str(int(reply)) for reply in (Reply.NETWORK_UNREACHABLE, Reply.CONNECTION_REFUSED)]
    assert done.stdout.split() == replies, done.stderr
