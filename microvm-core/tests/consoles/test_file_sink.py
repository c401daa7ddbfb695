"""A console into a file: byte for byte, bounded, and never the machine's end. Rows 62 and 63."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from microvm import ConfigError
from microvm.consoles.file_sink import FULL, FileSink


async def test_bytes_arrive_as_they_are(served, tmp_path: Path) -> None:
    """Row 63."""
    raw = b"\x1b]0;title\x07\x00\xff\xfe" + b"x" * (1 << 20) + b"\r\n"
    path = tmp_path / "console"
    async with served(FileSink(path, 64 << 20)) as bench:
        for begin in range(0, len(raw), 65536):
            bench.hub.feed(raw[begin : begin + 65536])
            end = min(begin + 65536, len(raw))
            while path.stat().st_size < end:  # noqa: ASYNC110 - the disk tells nobody
                await trio.sleep(0.001)
    assert path.read_bytes() == raw


async def test_the_file_is_its_users_alone_and_emptied(served, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"of another day")
    old.chmod(0o644)
    for path in (old, new):
        async with served(FileSink(path, 1024)) as bench:
            bench.hub.feed(b"now")
        assert path.read_bytes() == b"now"
        assert path.stat().st_mode & 0o777 == 0o600


async def test_no_symbolic_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """In a folder that others write to it may be theirs, and lead to what is ours."""
    precious, link, dangling = tmp_path / "precious", tmp_path / "link", tmp_path / "dangling"
    precious.write_bytes(b"precious")
    precious.chmod(0o644)
    link.symlink_to(precious)
    dangling.symlink_to(tmp_path / "nothing")
    for path in (link, dangling):
        with pytest.raises(ConfigError, match="it is a symbolic link") as caught:
            async with FileSink(path, 1024).lifespan():
                pytest.fail("it was opened")
        assert caught.value.remedy == "Name the file that it leads to."
    assert precious.read_bytes() == b"precious"
    assert precious.stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "nothing").exists()


async def test_a_file_that_another_machine_writes_is_refused_and_stays_as_it_is(
    served, tmp_path: Path
) -> None:
    path = tmp_path / "console"
    async with served(FileSink(path, 1024)) as bench:
        bench.hub.feed(b"first")
        while not path.read_bytes():  # noqa: ASYNC110 - the disk tells nobody
            await trio.sleep(0.001)
        with pytest.raises(ConfigError, match="it is in use"):
            async with FileSink(path, 1024).lifespan():
                pytest.fail("it was opened")
        assert path.read_bytes() == b"first"
    async with served(FileSink(path, 1024)):
        pass  # whoever had it has left


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"theirs")
    path.chmod(0o666)
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="it is another user's") as caught:
        async with FileSink(path, 1024).lifespan():
            pytest.fail("it was opened")
    assert caught.value.remedy == "Remove it, or choose another name."
    assert path.read_bytes() == b"theirs"
    assert path.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("way", ["itself", "a link", "a descriptor's name"])
async def test_a_pipe_is_written_under_whatever_name_and_keeps_its_mode(
    served, tmp_path: Path, way: str
) -> None:
    """As `/dev/stdout`, `>(tee log)` and `/dev/serial/by-id/...` are links."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    (tmp_path / "link").symlink_to(pipe)
    path = {
        "itself": pipe,
        "a link": tmp_path / "link",
        "a descriptor's name": Path(f"/dev/fd/{writer}"),
    }[way]
    try:
        async with served(FileSink(path, 1024)) as bench:
            bench.hub.feed(b"hello")
        assert os.read(reader, 100) == b"hello"
        assert pipe.stat().st_mode & 0o777 == 0o644
    finally:
        os.close(reader)
        os.close(writer)


async def test_dev_null_stays_what_it_is(served) -> None:
    before = os.stat("/dev/null")
    async with served(FileSink(Path("/dev/null"), 1024)) as bench:
        bench.hub.feed(b"hello")
    assert os.stat("/dev/null").st_mode == before.st_mode


async def test_past_its_bound_a_line_says_so_and_the_rest_is_counted(served, tmp_path) -> None:
    sink = FileSink(tmp_path / "console", 1000)
    async with served(sink) as bench:
        bench.hub.feed(b"a" * 900)
        bench.hub.feed(b"b" * 900)
    assert (tmp_path / "console").read_bytes() == b"a" * 900 + b"b" * 100 + FULL
    assert sink.counters() == {"dropped_bytes": 800}


async def test_a_full_disk_costs_bytes_and_one_warning(served, caplog) -> None:
    """Row 62."""
    sink = FileSink(Path("/dev/full"), 1 << 20)
    async with served(sink) as bench:
        for _ in range(5):
            bench.hub.feed(b"x" * 100)
            await trio.sleep(0.02)
    assert sink.counters() == {"dropped_bytes": 500}
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


LIMITED = """
import resource, sys, trio
from pathlib import Path
from microvm.consoles.client import ConsoleDoor
from microvm.consoles.file_sink import FileSink
from microvm.consoles.hub import ConsoleHub

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

async def main():
    hub, sink = ConsoleHub(lambda call: call()), FileSink(Path(sys.argv[1]), 1 << 20)
    async with sink.lifespan(), trio.open_nursery() as nursery:
        door = ConsoleDoor(hub, None)
        door.serve_in(nursery)
        async with door.open() as console:
            hub.feed(b"x" * 25_000)
            hub.finish()
            await sink.serve(console)
    print(sink.counters()["dropped_bytes"])

trio.run(main)
"""


def test_a_limit_on_file_sizes_ends_nobody(tmp_path: Path) -> None:
    """Row 62, with row 42's RLIMIT_FSIZE."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / "console")],
        capture_output=True,
        check=True,
        text=True,
    )
    assert (tmp_path / "console").stat().st_size == 10_000
    assert done.stdout == "15000\n"


async def test_a_pipe_that_nobody_reads_drops_and_goes_on(served, tmp_path: Path) -> None:
    """Row 62: the reader has stopped."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        sink = FileSink(tmp_path / "pipe", 1 << 30)
        async with served(sink) as bench:
            for _ in range(64):
                bench.hub.feed(bytes(64 * 1024))
                await trio.sleep(0.005)
        lost = sink.counters()["dropped_bytes"] + bench.hub.counters()["dropped_bytes"]
        assert lost == 64 * 64 * 1024 - 64 * 1024  # a pipe holds 64 KiB
    finally:
        os.close(reader)


@pytest.mark.parametrize("what", ["a folder", "nowhere", "a pipe without a reader"])
async def test_what_can_not_be_written_is_known_before_the_start(tmp_path: Path, what) -> None:
    path = {
        "a folder": tmp_path,
        "nowhere": tmp_path / "no" / "such",
        "a pipe without a reader": tmp_path / "pipe",
    }[what]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"console\.path.*can't be written"):
        async with FileSink(path, 1024).lifespan():
            pass
