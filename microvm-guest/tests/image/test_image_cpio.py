"""The newc archive: what goes in comes out, always in the same bytes, and nothing escapes."""

import random
import shutil
import stat
import subprocess
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.image.cpio import (
    CharDevice,
    CpioError,
    Directory,
    Entry,
    File,
    Symlink,
    archive,
)


@attrs.frozen(kw_only=True)
class Read:
    """An entry as a reader written from the format's description sees it."""

    inode: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    device: tuple[int, int]
    data: bytes


def read(data: bytes) -> dict[str, Read]:
    """Read an archive; fails on anything that is not exactly as described."""
    found: dict[str, Read] = {}
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, nlink, mtime, size, _, _, major, minor, name_size, check = fields
        name_at = at + 110
        name = data[name_at : name_at + name_size]
        assert name[-1:] == b"\0"
        assert check == 0
        data_at = (name_at + name_size + 3) & ~3
        at = (data_at + size + 3) & ~3
        assert not any(data[name_at + name_size : data_at])
        assert not any(data[data_at + size : at])
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        found[name[:-1].decode()] = Read(
            inode=inode,
            mode=mode,
            uid=uid,
            gid=gid,
            nlink=nlink,
            mtime=mtime,
            device=(major, minor),
            data=data[data_at : data_at + size],
        )


SAMPLE: list[Entry] = [
    File("init", b"\x7fELF", mode=0o755),
    Directory("tmp", mode=0o1777),
    Symlink("bin/sh", "/bin/busybox"),
    CharDevice("dev/console", 5, 1),
    File("etc/empty", b""),
]


def test_what_goes_in_comes_out() -> None:
    found = read(archive(SAMPLE))
    assert list(found) == ["bin", "bin/sh", "dev", "dev/console", "etc", "etc/empty", "init", "tmp"]
    assert found["init"].data == b"\x7fELF"
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["tmp"].mode == stat.S_IFDIR | 0o1777
    assert found["bin/sh"].mode == stat.S_IFLNK | 0o777
    assert found["bin/sh"].data == b"/bin/busybox"
    assert found["dev/console"].mode == stat.S_IFCHR | 0o600
    assert found["dev/console"].device == (5, 1)


def test_everything_belongs_to_root_and_is_as_old_as_time() -> None:
    found = read(archive(SAMPLE)).values()
    assert {(entry.uid, entry.gid, entry.mtime) for entry in found} == {(0, 0, 0)}
    assert len({entry.inode for entry in found}) == len(found)


def test_the_order_of_the_entries_does_not_matter() -> None:
    shuffled = SAMPLE.copy()
    for seed in range(10):
        random.Random(seed).shuffle(shuffled)
        assert archive(shuffled) == archive(SAMPLE)


def test_missing_directories_are_made_and_stand_before_what_they_hold() -> None:
    assert list(read(archive([File("a/b/c", b"")]))) == ["a", "a/b", "a/b/c"]


def test_an_archive_of_nothing_is_its_end_alone() -> None:
    assert read(archive([])) == {}
    assert len(archive([])) == 124


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        "TRAILER!!!",
        "x" * 4096,
    ],
)
def test_a_name_that_is_not_plainly_inside_is_refused(name: str) -> None:
    for make in (
        lambda: File(name, b""),
        lambda: Directory(name),
        lambda: Symlink(name, "x"),
        lambda: CharDevice(name, 1, 3),
    ):
        with pytest.raises(CpioError):
            make()


@pytest.mark.parametrize("target", ["", "a\0b", "x" * 4096])
def test_a_link_that_points_at_nothing_possible_is_refused(target: str) -> None:
    with pytest.raises(CpioError):
        Symlink("link", target)


@pytest.mark.parametrize("mode", [-1, 0o10000])
def test_a_mode_with_more_than_permissions_is_refused(mode: int) -> None:
    with pytest.raises(CpioError):
        File("a", b"", mode=mode)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(CpioError, match="twice"):
        archive([File("a", b"1"), Symlink("a", "b")])


@pytest.mark.parametrize("above", [File("a", b""), Symlink("a", "/etc"), CharDevice("a", 1, 3)])
def test_nothing_lies_below_what_is_not_a_directory(above: Entry) -> None:
    with pytest.raises(CpioError, match="not a directory"):
        archive([above, File("a/b", b"")])


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=32), max_size=6))
def test_any_set_of_files_is_refused_or_read_back(files: dict[str, bytes]) -> None:
    try:
        data = archive(File(name, content) for name, content in files.items())
    except CpioError:
        parents = {name.rsplit("/", depth)[0] for name in files for depth in (1, 2)}
        assert "TRAILER!!!" in files or any(
            parent in files and any(name.startswith(f"{parent}/") for name in files)
            for parent in parents
        )
        return
    found = read(data)
    assert {name: found[name].data for name in files} == files


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_the_cpio_program_reads_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["cpio", "--extract", "--no-absolute-filenames", "--quiet"],
        input=archive([entry for entry in SAMPLE if not isinstance(entry, CharDevice)]),
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    assert (tmp_path / "init").read_bytes() == b"\x7fELF"
    assert (tmp_path / "bin/sh").readlink() == Path("/bin/busybox")
