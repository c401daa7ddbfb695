"""The AF_UNIX sockets: Firecracker's clients both ways, and hostile ones."""

import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm_devices.vsock import limits
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import Op
from microvm_devices.vsock.testing import GuestVsock

from .vsock_sockets import PORT, machine, ok, receive_exactly

# --- Firecracker's dialect -------------------------------------------------------------------


async def test_a_firecracker_client_reaches_a_guest_port(tmp_path: Path) -> None:
    async with machine(tmp_path / "v.sock") as (_, guest):
        incoming = guest.listen(52)
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            await client.send_all(b"CONNECT 52\n")
            far = await incoming.receive()
            assert await ok(client) == far.host_port
            await client.send_all(b"question")
            assert await far.receive_some() == b"question"
            await far.send_all(b"answer")
            assert await client.receive_some() == b"answer"
            await client.send_eof()
            assert await far.receive_all() == b""
            await far.aclose()
            assert await client.receive_some() == b""


async def test_a_firecracker_server_is_reached_by_the_guest(tmp_path: Path) -> None:
    async with machine(tmp_path / "v.sock") as (device, guest):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.bind(str(tmp_path / f"v.sock_{PORT}"))
            raw.listen()
            raw.setblocking(False)
            far = await guest.connect(PORT)
            connection, _ = raw.accept()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        async with stream:
            await far.send_all(b"from the guest")
            assert await stream.receive_some() == b"from the guest"
            await stream.send_all(b"from the host")
            assert await far.receive_some() == b"from the host"
        assert await far.receive_all() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert device.statistics.connections == 0


async def test_a_listener_in_this_process_comes_before_a_socket(tmp_path: Path) -> None:
    async with machine(tmp_path / "v.sock") as (device, guest), device.listen(PORT) as listener:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.bind(str(tmp_path / f"v.sock_{PORT}"))
            raw.listen()
            far = await guest.connect(PORT)
            async with await listener.accept():
                assert far.established


# --- 60: the CONNECT line --------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
async def test_bytes_behind_the_line_reach_the_guest_however_they_are_cut(
    tmp_path: Path, piece: int
) -> None:
    """Row 60."""
    async with machine(tmp_path / "v.sock") as (_, guest):
        incoming = guest.listen(52)
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            sent = b"CONNECT 52\n" + bytes(range(256))
            for start in range(0, len(sent), piece):
                await client.send_all(sent[start : start + piece])
            far = await incoming.receive()
            received = b""
            while len(received) < 256:
                received += await far.receive_some()
            assert received == bytes(range(256))
            await ok(client)


@pytest.mark.parametrize(
    "line",
    [b"garbage\n", b"CONNECT 4294967296\n", b"CONNECT x\n", b"\n", b"x" * 33, b"CONNECT -1\n"],
)
async def test_another_line_closes_the_connection_without_a_word(
    tmp_path: Path, line: bytes
) -> None:
    async with machine(tmp_path / "v.sock") as (_, guest):
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            await client.send_all(line)
            assert await client.receive_some() == b""
        assert guest.streams == {}


async def test_a_port_nobody_listens_on_closes_the_connection_at_once(tmp_path: Path) -> None:
    async with machine(tmp_path / "v.sock") as (device, _):
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            await client.send_all(b"CONNECT 52\n")
            assert await client.receive_some() == b""
        assert device.statistics.connections == 0


@pytest.mark.parametrize("said", [b"", b"CONN", b"CONNECT 52"])
async def test_ch_6621_a_client_that_leaves_before_the_end_of_its_line_does_no_harm(
    tmp_path: Path, said: bytes
) -> None:
    async with machine(tmp_path / "v.sock") as (device, guest):
        for _ in range(3):
            async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
                if said:
                    await client.send_all(said)
        await trio.testing.wait_all_tasks_blocked()
        assert device.statistics.connections == 0
        incoming = guest.listen(52)
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            await client.send_all(b"CONNECT 52\n")
            await incoming.receive()
            await ok(client)


async def test_ch_6798_a_client_that_leaves_after_its_line_does_no_harm(tmp_path: Path) -> None:
    async with machine(tmp_path / "v.sock") as (device, guest):
        incoming = guest.listen(52)
        for _ in range(20):
            client = await trio.open_unix_socket(tmp_path / "v.sock")
            await client.send_all(b"CONNECT 52\nlast words")
            await client.aclose()
            # Nobody hears the OK, but what was said is delivered.
            far = await incoming.receive()
            assert await far.receive_all() == b"last words"
            await far.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert device.statistics.connections == 0


async def test_ch_3485_a_client_that_half_closes_before_ok_gets_its_answer(tmp_path: Path) -> None:
    async with machine(tmp_path / "v.sock") as (_, guest):
        incoming = guest.listen(52)
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            await client.send_all(b"CONNECT 52\nrequest")
            await client.send_eof()
            far = await incoming.receive()
            assert await far.receive_all() == b"request"
            await far.send_all(b"answer")
            await far.aclose()
            await ok(client)
            assert await receive_exactly(client, 6) == b"answer"
            assert await client.receive_some() == b""


def test_slow_clients_are_closed_in_bounded_time_and_do_not_hold_up_others(tmp_path: Path) -> None:
    """Row 60."""

    async def main() -> None:
        async with machine(tmp_path / "v.sock") as (_, guest):
            incoming = guest.listen(52)
            began = trio.current_time()
            async with await trio.open_unix_socket(tmp_path / "v.sock") as slow:
                await slow.send_all(b"CONNECT ")
                async with await trio.open_unix_socket(tmp_path / "v.sock") as quick:
                    await quick.send_all(b"CONNECT 52\n")
                    await incoming.receive()
                    await ok(quick)
                # One byte a second.
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        await slow.send_all(b"0")
                        await trio.sleep(1)
            assert trio.current_time() - began <= limits.CONNECT_LINE_TIMEOUT_S + 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


@pytest.mark.parametrize("attached", [True, False])
def test_a_guest_that_does_not_answer_is_given_up_after_two_seconds(
    tmp_path: Path, attached: bool
) -> None:
    async def main() -> None:
        device, guest = VsockDevice(VsockConfig(uds_path=tmp_path / "v.sock")), GuestVsock()
        async with device.lifespan(), trio.open_nursery() as nursery:
            if attached:
                await nursery.start(running, guest, device)
            async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
                began = trio.current_time()
                await client.send_all(b"CONNECT 52\n")
                assert await client.receive_some() == b""
                waited = trio.current_time() - began
                assert 0.9 * limits.CONNECT_TIMEOUT_S < waited < 1.2 * limits.CONNECT_TIMEOUT_S
                assert device.statistics.connections == 0
            nursery.cancel_scope.cancel()

    async def running(guest: GuestVsock, device: VsockDevice, *, task_status) -> None:
        async with guest.running(device):
            task_status.started()
            await trio.sleep_forever()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def test_a_thousand_idle_clients_do_not_keep_the_next_one_out(tmp_path: Path) -> None:
    """Row 60."""
    async with machine(tmp_path / "v.sock") as (device, guest):
        incoming = guest.listen(52)
        idle = []
        for _ in range(1000):
            idle.append(await trio.open_unix_socket(tmp_path / "v.sock"))
            await trio.lowlevel.checkpoint()
        async with await trio.open_unix_socket(tmp_path / "v.sock") as client:
            await client.send_all(b"CONNECT 52\n")
            await incoming.receive()
            await ok(client)
        await trio.testing.wait_all_tasks_blocked()
        assert device._uds is not None
        assert len(device._uds._unnamed) <= limits.MAX_UNNAMED_CLIENTS
        for client in idle:
            await client.aclose()


# --- 61: guest to host -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["missing", "stale", "file", "directory", "symlink", "datagram", "other user"]
)
async def test_a_port_without_a_socket_that_serves_us_is_refused_at_once(
    tmp_path: Path, kind: str
) -> None:
    """Row 61."""
    path = tmp_path / f"v.sock_{PORT}"
    async with machine(tmp_path / "v.sock", serve=False) as (_, guest):
        raw = None
        if kind in ("stale", "symlink", "datagram", "other user"):
            type_ = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
            raw = socket.socket(socket.AF_UNIX, type_)
            raw.bind(str(path if kind != "symlink" else tmp_path / "elsewhere"))
            if type_ == socket.SOCK_STREAM:
                raw.listen()
        if kind == "stale":
            assert raw is not None
            raw.close()
        elif kind == "symlink":
            path.symlink_to(tmp_path / "elsewhere")
        elif kind == "other user":
            if os.geteuid():
                pytest.skip("only root can give a socket to another user")
            os.chown(path, 12345, 12345)
        elif kind == "file":
            path.write_text("")
        elif kind == "directory":
            path.mkdir()
        guest.send(Op.REQUEST, 1, PORT)
        assert [packet.op for packet in await guest.settled()] == [Op.RST]
        if raw is not None:
            raw.close()


@asynccontextmanager
async def shared_directory() -> AsyncIterator[Path]:
    """A directory that other users can look into, and a way to be one of them."""
    if os.geteuid():
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(12345)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_client_of_another_user_is_closed_even_if_it_can_open_the_socket() -> None:
    async with shared_directory() as directory, machine(directory / "v.sock") as (_, guest):
        guest.listen(52)
        os.chmod(directory / "v.sock", 0o666)
        with socket.socket(socket.AF_UNIX) as raw:
            with another_user():
                raw.connect(str(directory / "v.sock"))
            await trio.testing.wait_all_tasks_blocked()
            assert raw.recv(1) == b""
        assert guest.streams == {}


async def test_a_server_of_another_user_is_not_given_the_guests_bytes() -> None:
    async with (
        shared_directory() as directory,
        machine(directory / "v.sock", serve=False) as (_, guest),
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.bind(str(directory / f"v.sock_{PORT}"))
            with another_user():
                raw.listen()
            guest.send(Op.REQUEST, 1, PORT)
            assert [packet.op for packet in await guest.settled()] == [Op.RST]
