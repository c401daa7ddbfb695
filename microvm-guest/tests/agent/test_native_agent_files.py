"""Files through the real agent: in, out and all that a file system is asked.

Long; trees in and trees out would part.
"""

import os
import stat
import time
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from microvm.abc import CopyLimits, CopyReport, FileKind
from microvm.errors import ConfigError, GuestError, GuestFileError, GuestFileNotFound
from microvm_guest.protocol.records import MAX_DEPTH, Entry, Record, RecordKind

MIB = 1024 * 1024


@pytest.fixture
def guest_dir(tmp_path):
    """A directory that only the agent's side of a test is meant to see."""
    path = tmp_path / "guest"
    path.mkdir()
    return path


@asynccontextmanager
async def files_of(agent):
    async with agent.client() as client:
        yield client.files


def shape(root):
    """All that is in a tree: kind, permissions, time, and content or target."""
    found = {}
    for path in [root, *root.rglob("*")]:
        info = path.lstat()
        content = (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        found[str(path.relative_to(root))] = (oct(info.st_mode), info.st_mtime_ns, content)
    return found


def make_tree(root):
    (root / "a/b/empty").mkdir(parents=True)
    (root / "a/text").write_text("text\n")
    (root / "a/b/big").write_bytes(os.urandom(3 * MIB + 17))
    (root / "a/b/nothing").touch()
    (root / "a/to-text").symlink_to("text")
    (root / "to-nowhere").symlink_to("/does/not/exist")
    (root / os.fsdecode(b"not-utf8-\xff\n")).write_bytes(b"x")
    (root / "a/text").chmod(0o440)
    (root / "a/b").chmod(0o711)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
    os.utime(root, ns=(1, 1_500_000_000_000_000_000))


# --- copies --------------------------------------------------------------------------------


async def test_a_tree_goes_in_and_comes_out_as_it_was(agent, guest_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    make_tree(source)
    async with files_of(agent) as files:
        went = await files.copy_in(source, f"{guest_dir}/tree")
        came = await files.copy_out(f"{guest_dir}/tree", tmp_path / "out")
    assert went == came == CopyReport(entries=10, bytes=3 * MIB + 17 + 6)
    assert shape(guest_dir / "tree") == shape(source)
    assert shape(tmp_path / "out") == shape(source)


async def test_a_file_goes_in_and_comes_out_with_its_mode_and_time(agent, guest_dir, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    source.chmod(0o750)
    os.utime(source, ns=(1, 1_600_000_000_000_000_001))
    async with files_of(agent) as files:
        await files.copy_in(source, f"{guest_dir}/file")
        await files.copy_out(f"{guest_dir}/file", tmp_path / "out")
    for copy in (guest_dir / "file", tmp_path / "out"):
        assert shape(copy) == shape(source)


async def test_set_user_id_goes_in_and_does_not_come_out(agent, guest_dir, tmp_path):
    source = tmp_path / "source"
    source.touch()
    source.chmod(0o6755)
    async with files_of(agent) as files:
        await files.copy_in(source, f"{guest_dir}/file")
        await files.copy_out(f"{guest_dir}/file", tmp_path / "out")
    assert stat.S_IMODE((guest_dir / "file").stat().st_mode) == 0o6755
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


async def test_a_directory_that_nobody_may_enter_can_still_be_removed_here(
    agent, guest_dir, tmp_path
):
    (guest_dir / "shut").mkdir(mode=0)
    async with files_of(agent) as files:
        await files.copy_out(f"{guest_dir}/shut", tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


async def test_what_is_no_file_is_skipped_and_told(agent, guest_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    os.mkfifo(guest_dir / "pipe")
    async with files_of(agent) as files:
        went = await files.copy_in(source, f"{guest_dir}/tree")
        came = await files.copy_out(str(guest_dir), tmp_path / "out")
    assert went == CopyReport(entries=1, bytes=0, skipped=("pipe",))
    assert came == CopyReport(entries=2, bytes=0, skipped=("pipe",))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tree"]


async def test_the_path_itself_is_followed_and_links_within_are_not(agent, guest_dir, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("key")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link").symlink_to(secret)
    (tmp_path / "to-source").symlink_to(source)
    async with files_of(agent) as files:
        await files.copy_in(tmp_path / "to-source", f"{guest_dir}/tree")
        (guest_dir / "to-tree").symlink_to("tree")
        await files.copy_out(f"{guest_dir}/to-tree", tmp_path / "out")
    for copy in (guest_dir / "tree", tmp_path / "out"):
        assert os.readlink(copy / "link") == str(secret)


async def test_a_copy_replaces_a_file_and_a_link_but_not_what_the_link_leads_to(
    agent, guest_dir, tmp_path
):
    (tmp_path / "source").write_text("new")
    for place in (guest_dir, tmp_path):
        (place / "other").write_text("old")
        (place / "copy").symlink_to("other")
    async with files_of(agent) as files:
        await files.copy_in(tmp_path / "source", f"{guest_dir}/copy")
        await files.copy_out(f"{guest_dir}/copy", tmp_path / "copy")
    for place in (guest_dir, tmp_path):
        assert not (place / "copy").is_symlink()
        assert (place / "copy").read_text() == "new"
        assert (place / "other").read_text() == "old"


async def test_a_copy_does_not_replace_a_directory_with_something_in_it(agent, guest_dir, tmp_path):
    source, there = tmp_path / "source", guest_dir / "there"
    for path in (source, there):
        path.mkdir()
        (path / path.name).write_text("mine")
    before = (shape(source), shape(there))
    async with files_of(agent) as files:
        with pytest.raises(GuestFileError, match="not empty") as caught:
            await files.copy_in(source, str(there))
        assert caught.value.errno == 39
        with pytest.raises(FileExistsError, match="something in it"):
            await files.copy_out(str(there), source)
        with pytest.raises(GuestFileError, match="It is a directory"):
            await files.write_bytes(str(there), b"")
        (tmp_path / "empty").mkdir()
        with pytest.raises(IsADirectoryError):
            await files.copy_out(f"{there}/there", tmp_path / "empty")
    assert (shape(source), shape(there)) == before
    assert sorted(os.listdir(guest_dir)) == ["there"]


async def test_deeper_than_the_agent_goes_is_an_error_both_ways(agent, guest_dir, tmp_path):
    deep = guest_dir / "/".join(["d"] * (MAX_DEPTH + 1))
    deep.mkdir(parents=True)
    async with files_of(agent) as files:
        with pytest.raises(OSError, match="deep"):
            await files.copy_in(guest_dir, f"{tmp_path}/in")
        with pytest.raises(GuestFileError, match="too deep"):
            await files.copy_out(str(guest_dir), tmp_path / "out", limits=CopyLimits(max_depth=128))
    assert sorted(os.listdir(tmp_path)) == ["guest"]


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (CopyLimits(max_bytes=MIB), "max_bytes"),
        (CopyLimits(max_entries=9), "max_entries"),
        (CopyLimits(max_depth=2), "max_depth"),
    ],
)
async def test_a_copy_past_its_limits_leaves_nothing(agent, guest_dir, tmp_path, limits, named):
    make_tree(guest_dir)
    (tmp_path / "here").mkdir()
    async with files_of(agent) as files:
        with pytest.raises(GuestError, match="nothing of it was kept") as caught:
            await files.copy_out(str(guest_dir), tmp_path / "here/out", limits=limits)
        assert named in caught.value.remedy
        await files.stat("/")
    assert os.listdir(tmp_path / "here") == []


async def test_a_copy_that_is_cancelled_leaves_nothing_on_either_side(agent, guest_dir, tmp_path):
    (tmp_path / "here").mkdir()
    endless = tmp_path / "endless"
    endless.mkdir()
    (endless / "sparse").touch()
    os.truncate(endless / "sparse", 1 << 40)
    async with agent.client() as client:
        with trio.move_on_after(0.3) as scope:
            await client.files.copy_in(endless, f"{guest_dir}/in")
        assert scope.cancelled_caught
        with trio.move_on_after(0.3) as scope:
            await client.files.copy_out(str(endless), tmp_path / "here/out")
        assert scope.cancelled_caught
        while (await client.status())["commands"]:
            await client.ping()
    assert os.listdir(guest_dir) == []
    assert os.listdir(tmp_path / "here") == []


async def test_what_can_not_be_read_here_is_an_error_of_the_hosts(agent, guest_dir, tmp_path):
    async with files_of(agent) as files:
        with pytest.raises(FileNotFoundError) as caught:
            await files.copy_in(tmp_path / "none", f"{guest_dir}/in")
        assert not isinstance(caught.value, GuestError)
        with pytest.raises(OSError, match="neither a file nor a directory"):
            await files.copy_in("/dev/null", f"{guest_dir}/in")
        with pytest.raises(FileNotFoundError):
            await files.copy_out(str(guest_dir), tmp_path / "none/out")
        assert os.listdir(guest_dir) == []


# --- one file ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 5 * MIB])
async def test_what_is_written_is_read(agent, guest_dir, size):
    data = os.urandom(size)
    async with files_of(agent) as files:
        await files.write_bytes(f"{guest_dir}/x", data, mode=0o640)
        assert await files.read_bytes(f"{guest_dir}/x") == data
        assert (await files.stat(f"{guest_dir}/x")).mode == 0o640
    assert (guest_dir / "x").read_bytes() == data


async def test_text_has_an_encoding(agent, guest_dir):
    async with files_of(agent) as files:
        await files.write_text(f"{guest_dir}/x", "grün", encoding="latin-1")
        assert await files.read_bytes(f"{guest_dir}/x") == b"gr\xfcn"
        assert await files.read_text(f"{guest_dir}/x", encoding="latin-1") == "grün"


async def test_a_file_is_there_only_when_the_block_is_left_well(agent, guest_dir):
    (guest_dir / "x").write_text("old")
    async with agent.client() as client:
        with pytest.raises(ZeroDivisionError):
            async with client.files.open_write(f"{guest_dir}/x") as stream:
                await stream.send_all(b"new")
                1 / 0  # noqa: B018
        while (await client.status())["commands"]:
            await client.ping()
        assert os.listdir(guest_dir) == ["x"]
        assert (guest_dir / "x").read_text() == "old"
        async with client.files.open_write(f"{guest_dir}/x") as stream:
            await stream.send_all(b"new")
            assert (guest_dir / "x").read_text() == "old"
        assert (guest_dir / "x").read_text() == "new"
        assert os.listdir(guest_dir) == ["x"]


async def test_an_endless_file_is_held_up_by_who_reads_it_slowly(agent):
    async with agent.client() as client:
        async with client.files.open_read("/dev/zero") as stream:
            for _ in range(20):
                assert set(await stream.receive_some()) == {0}
                await trio.sleep(0.005)
            assert await stream.receive_some(7) == bytes(7)
        with pytest.raises(GuestError, match="more than 1000000 bytes"):
            await client.files.read_bytes("/dev/zero", max_bytes=1_000_000)
        while (await client.status())["commands"]:
            await client.ping()


async def test_files_of_the_kernels_own_are_read_and_written_in_place(agent):
    async with files_of(agent) as files:
        assert (await files.read_text("/proc/self/comm")) == "microvm-files\n"
        await files.write_text("/proc/self/comm", "renamed")  # its own: gone with it
        with pytest.raises(GuestFileNotFound):
            await files.write_text("/proc/none", "x")
        with pytest.raises(GuestFileError):
            await files.write_text("/proc/version", "x")


# --- the rest ------------------------------------------------------------------------------


async def test_stat_and_list_tell_of_every_kind(agent, guest_dir):
    (guest_dir / "file").write_text("12345")
    (guest_dir / "file").chmod(0o604)
    os.utime(guest_dir / "file", ns=(1, 77))
    (guest_dir / "dir").mkdir()
    (guest_dir / "link").symlink_to("file")
    os.mkfifo(guest_dir / "pipe")
    async with files_of(agent) as files:
        listed = await files.list_dir(str(guest_dir))
        link = await files.stat(f"{guest_dir}/link", follow=False)
        through = await files.stat(f"{guest_dir}/link")
        root = await files.stat("/")
        with pytest.raises(GuestError, match="more than 3 entries"):
            await files.list_dir(str(guest_dir), max_entries=3)
    assert [(it.name, it.kind) for it in listed] == [
        ("dir", FileKind.DIRECTORY),
        ("file", FileKind.FILE),
        ("link", FileKind.SYMLINK),
        ("pipe", FileKind.OTHER),
    ]
    assert (listed[1].size, listed[1].mode, listed[1].mtime_ns) == (5, 0o604, 77)
    assert (link.kind, link.target, link.name) == (FileKind.SYMLINK, "file", "link")
    assert (through.kind, through.size) == (FileKind.FILE, 5)
    assert (root.kind, root.name) == (FileKind.DIRECTORY, "/")


async def test_a_directory_of_many_is_listed_whole(agent, guest_dir):
    for number in range(3000):
        (guest_dir / f"{number:04}{'n' * 200}").touch()
    async with files_of(agent) as files:
        listed = await files.list_dir(str(guest_dir))
    assert [it.name[:4] for it in listed] == [f"{n:04}" for n in range(3000)]


async def test_directories_are_made_and_removed(agent, guest_dir):
    async with files_of(agent) as files:
        with pytest.raises(GuestFileNotFound):
            await files.mkdir(f"{guest_dir}/a/b/c")
        await files.mkdir(f"{guest_dir}/a/b/c", parents=True)
        await files.mkdir(f"{guest_dir}/a/b/c", parents=True)
        with pytest.raises(GuestFileError, match="there already"):
            await files.mkdir(f"{guest_dir}/a")
        assert await files.exists(f"{guest_dir}/a/b/c")
        await files.write_text(f"{guest_dir}/a/b/x", "x")
        (guest_dir / "a/b/out").symlink_to("/etc")
        with pytest.raises(GuestFileError, match="not empty"):
            await files.remove(f"{guest_dir}/a")
        await files.remove(f"{guest_dir}/a", tree=True)
        assert not await files.exists(f"{guest_dir}/a")
        with pytest.raises(GuestFileNotFound):
            await files.remove(f"{guest_dir}/a", tree=True)
        with pytest.raises(GuestFileError, match="Not a directory"):
            (guest_dir / "file").touch()
            await files.mkdir(f"{guest_dir}/file/x", parents=True)
    assert os.access("/etc/passwd", os.R_OK)


@pytest.mark.parametrize("path", ["", "a\0b"])
async def test_a_path_that_is_none_is_the_callers_fault(agent, path):
    async with files_of(agent) as files:
        with pytest.raises(ConfigError, match="path in the guest"):
            await files.stat(path)


async def test_many_operations_run_at_once(agent, guest_dir):
    async with files_of(agent) as files, trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(files.write_bytes, f"{guest_dir}/{number}", bytes([number]) * 70_000)
    assert {int(it.name): it.read_bytes()[:1] for it in guest_dir.iterdir()} == {
        number: bytes([number]) for number in range(60)
    }


async def test_a_command_is_served_while_a_file_is_waited_for(agent, guest_dir):
    """Opening a pipe that nobody writes to waits for ever: in a process of its own."""
    os.mkfifo(guest_dir / "pipe")
    async with agent.client() as client:
        with trio.move_on_after(0.2) as scope:
            await client.files.read_bytes(f"{guest_dir}/pipe")
        assert scope.cancelled_caught
        assert (await client.run(["echo", "x"])).stdout == b"x\n"
        while (await client.status())["commands"]:
            await client.ping()


async def test_row_89_no_descriptor_of_the_agents_is_open_in_what_serves_files(agent):
    async with files_of(agent) as files:
        names = [it.name for it in await files.list_dir("/proc/self/fd")]
    assert names == ["0", "1", "2", "3"], "the last is the directory that is listed"


async def test_row_89_what_has_served_files_is_reaped(agent, guest_dir):
    async with agent.client() as client:
        pid = (await client.status())["pid"]
        for number in range(20):
            await client.files.write_bytes(f"{guest_dir}/x", bytes([number]))
        children = await trio.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    assert children == ""


@pytest.mark.parametrize("spelt", ["{}/x/", "{}//x", "{}/./x", "{}/y/../x"])
async def test_a_path_may_be_spelt_in_many_ways(agent, guest_dir, tmp_path, spelt):
    (tmp_path / "tree").mkdir()
    (guest_dir / "y").mkdir()
    async with files_of(agent) as files:
        await files.copy_in(tmp_path / "tree", spelt.format(guest_dir))
        assert (await files.stat(spelt.format(guest_dir))).kind is FileKind.DIRECTORY
    assert sorted(os.listdir(guest_dir)) == ["x", "y"]


@pytest.mark.parametrize("spelt", ["/", "{}/.", "{}/..", "//"])
async def test_a_copy_in_needs_a_name_in_the_guest(agent, guest_dir, tmp_path, spelt):
    (tmp_path / "tree").mkdir()
    async with files_of(agent) as files:
        with pytest.raises(GuestFileError, match="It is a directory"):
            await files.copy_in(tmp_path / "tree", spelt.format(guest_dir))
    assert os.listdir(guest_dir) == []


# --- what only a wrong host sends -------------------------------------------------------------


def entry(kind, name=b"", **more):
    return Entry(kind=kind, mode=0o755, mtime_ns=0, name=name, **more).encode()


DIRECTORY = entry(RecordKind.DIRECTORY)
END = Record(RecordKind.END).encode()
DONE = Record(RecordKind.DONE).encode()
FILE_X = entry(RecordKind.FILE, b"x")


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(DONE, id="nothing"),
        pytest.param(END, id="an-end-of-nothing"),
        pytest.param(DIRECTORY, id="no-end"),
        pytest.param(DIRECTORY + END, id="no-done"),
        pytest.param(DIRECTORY + END + END, id="one-end-too-many"),
        pytest.param(DIRECTORY + Record(RecordKind.DATA, b"x").encode(), id="data-of-no-file"),
        pytest.param(DIRECTORY + FILE_X + FILE_X, id="a-file-in-a-file"),
        pytest.param(DIRECTORY + FILE_X + END + FILE_X + END, id="one-name-twice"),
        pytest.param(
            DIRECTORY
            + entry(RecordKind.SYMLINK, b"x", target=b"/tmp")
            + entry(RecordKind.DIRECTORY, b"x"),
            id="through-a-link",
        ),
        pytest.param(DIRECTORY + entry(RecordKind.FILE, b"a/b"), id="slash"),
        pytest.param(DIRECTORY + entry(RecordKind.FILE, b".."), id="dot-dot"),
        pytest.param(DIRECTORY + entry(RecordKind.DIRECTORY, b"."), id="dot"),
        pytest.param(DIRECTORY + entry(RecordKind.FILE, b"a\0"), id="nul"),
        pytest.param(DIRECTORY + entry(RecordKind.FILE), id="no-name"),
        pytest.param(DIRECTORY + entry(RecordKind.FILE, b"n" * 256), id="long-name"),
        pytest.param(DIRECTORY + entry(RecordKind.SYMLINK, b"x"), id="link-to-nothing"),
        pytest.param(
            DIRECTORY + entry(RecordKind.SYMLINK, b"x", target=b"t" * 5000), id="long-target"
        ),
        pytest.param(
            DIRECTORY + entry(RecordKind.DIRECTORY, b"d") * (MAX_DEPTH + 1), id="too-deep"
        ),
        pytest.param(DIRECTORY + Record(RecordKind.FILE, b"1").encode(), id="cut-short"),
        pytest.param(
            DIRECTORY + Record(RecordKind.SYMLINK, bytes(12) + b"\xff\xffx").encode(), id="cut-link"
        ),
        pytest.param(DIRECTORY + b"\0\0\1\1\4\0\0\0", id="too-long"),
        pytest.param(DIRECTORY + b"\0\0\0\0\5\1\0\0", id="reserved"),
        pytest.param(DIRECTORY + b"\0\0", id="half-a-header"),
    ],
)
async def test_records_that_are_wrong_leave_nothing(agent, guest_dir, records):
    async with agent.client() as client:
        async with client._launch_files(("put", f"{guest_dir}/x")) as process:
            with suppress(trio.BrokenResourceError):
                await process.stdin.send_all(records)
            process.stdin.close()
            said = b"".join([chunk async for chunk in process.stdout])
            assert (await process.wait()).exit_code == 1
        assert said[4] == RecordKind.ERROR
        assert os.listdir(guest_dir) == []


@pytest.mark.parametrize("words", [("what", "/"), ("stat",), ("stat", "/", "/")])
async def test_an_operation_that_there_is_not_is_refused(agent, words):
    async with agent.client() as client:
        async with client._launch_files(words) as process:
            said = b"".join([chunk async for chunk in process.stdout])
        assert said[4:12] == b"\x09\0\0\0" + (71).to_bytes(4, "little")


async def test_the_user_asked_for_is_who_touches_the_files(agent, guest_dir):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    from microvm_guest.protocol import RunFlag, RunRequest

    request = RunRequest(
        argv=("mkdir", f"{guest_dir}/x"), user="nobody", flags=RunFlag.FILES | RunFlag.MERGE
    )
    async with agent.client() as client, client._spawn(request) as process:
        said = b"".join([chunk async for chunk in process.stdout])
    assert said[8:12] == (13).to_bytes(4, "little")


async def test_throughput_is_not_a_frame_at_a_time(agent, guest_dir, tmp_path):
    """No bound on time: what is shown is that 64 MiB pass, whole."""
    data = os.urandom(64 * MIB)
    (tmp_path / "big").write_bytes(data)
    begin = time.perf_counter()
    async with files_of(agent) as files:
        await files.copy_in(tmp_path / "big", f"{guest_dir}/big")
        await files.copy_out(f"{guest_dir}/big", tmp_path / "out")
    print(f"{128 / (time.perf_counter() - begin):.0f} MiB/s")
    assert (tmp_path / "out").read_bytes() == data
