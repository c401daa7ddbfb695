"""Where the AF_UNIX socket lies: for whom it is, what it replaces, when it goes. Rows 82 to 84."""

import os
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm.errors import ConfigError
from microvm_devices.vsock.device import VsockDevice

from .vsock_sockets import PORT, machine, ok


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_the_socket_is_for_its_owner_alone_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        async with VsockDevice(VsockConfig(uds_path=tmp_path / "v.sock")).lifespan():
            assert mode(tmp_path / "v.sock") & 0o177 == 0
            os.umask(before)
    finally:
        os.umask(before)


async def test_the_path_is_removed_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with pytest.raises(KeyError):
        async with VsockDevice(VsockConfig(uds_path=path)).lifespan():
            assert stat.S_ISSOCK(path.lstat().st_mode)
            raise KeyError
    assert os.listdir(tmp_path) == []


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with machine(path) as (_, guest):
        incoming = guest.listen(52)
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"CONNECT 52\n")
            await incoming.receive()
            await ok(client)


@pytest.mark.parametrize("kind", ["live", "busy", "file", "directory", "symlink", "dangling"])
async def test_nothing_else_is_ever_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.sock"
    held: list[socket.socket] = []
    if kind in ("live", "busy"):
        raw = socket.socket(socket.AF_UNIX)
        held.append(raw)
        raw.bind(str(path))
        raw.listen(0)
        while kind == "busy":
            client = socket.socket(socket.AF_UNIX)
            held.append(client)
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
    elif kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        (tmp_path / "target").write_text("precious")
        path.symlink_to(tmp_path / "target")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    before = path.lstat().st_ino
    with pytest.raises(ConfigError, match="uds_path"):
        async with VsockDevice(VsockConfig(uds_path=path)).lifespan():
            pass
    assert path.lstat().st_ino == before
    for sock in held:
        sock.close()


async def test_the_name_is_left_if_it_has_become_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    async with VsockDevice(VsockConfig(uds_path=path)).lifespan():
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


async def test_of_many_starters_on_a_stale_path_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    results: list[str] = []
    all_tried = trio.Event()

    async def start() -> None:
        try:
            async with VsockDevice(VsockConfig(uds_path=path)).lifespan():
                results.append("won")
                await all_tried.wait()
        except ConfigError:
            results.append("lost")
        if len(results) == 5:
            all_tried.set()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked(cushion=0.02)
        all_tried.set()
    assert sorted(results) == ["lost"] * 4 + ["won"]


def test_a_directory_locked_by_another_program_is_an_error_in_bounded_time(tmp_path: Path) -> None:
    import fcntl

    async def main() -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(ConfigError, match="lock"):
                async with VsockDevice(VsockConfig(uds_path=tmp_path / "v.sock")).lifespan():
                    pass
        finally:
            os.close(fd)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_path_too_long_for_an_address_works_both_ways(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path = deep / "v.sock"
    before = os.getcwd()
    async with machine(path) as (_, guest):
        incoming = guest.listen(52)
        os.chdir(deep)
        try:
            async with await trio.open_unix_socket("v.sock") as client:
                await client.send_all(b"CONNECT 52\n")
                await incoming.receive()
                await ok(client)
            with socket.socket(socket.AF_UNIX) as raw:
                raw.bind(f"v.sock_{PORT}")
                raw.listen()
                assert (await guest.connect(PORT)).established
                raw.accept()[0].close()
        finally:
            os.chdir(before)
    assert not path.exists()


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("missing/v.sock", "can't be opened"),
        ("file/v.sock", "can't be opened"),
        ("open/v.sock", "others can replace"),
        ("x" * 120, "too long"),
    ],
)
async def test_a_path_that_cannot_be_used_says_why(tmp_path: Path, where: str, what: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match=what):
        async with VsockDevice(VsockConfig(uds_path=tmp_path / where)).lifespan():
            pass


async def test_a_failed_start_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "v.sock").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        async with VsockDevice(VsockConfig(uds_path=tmp_path / "v.sock")).lifespan():
            pass
    assert len(os.listdir("/proc/self/fd")) == before
