"""File system images: the same bytes whenever they are made, and sound by their own checkers."""

import os
import subprocess
from pathlib import Path

import pytest

from microvm_guest.image.cpio import Directory, File, Symlink
from microvm_guest.image.errors import BuildError
from microvm_guest.image.filesystems import (
    Content,
    ext4_script,
    ext4_size_mib,
    make,
    tool_versions,
)
from microvm_guest.image.progress import Silent
from microvm_guest.image.requirements import DISK_PROGRAMS, find_program
from microvm_guest.image.tree import HardLink, Stored, Tree
from microvm_guest.image.unpack import settle, unpack

from .debs import deb, hard_link, member, symlink
from .test_image_unpack import package

IDENTITY = "0123456789abcdef" * 2
MEMBERS = [
    member("./bin/su", b"program" * 1000, mode=0o4755),
    hard_link("./bin/also", "./bin/su"),
    symlink("./bin/link", "su"),
    member('./etc/a "quoted" näme', b"x"),
    member("./etc/empty"),
    *(member(f"./many/{number}", b"%d" % number) for number in range(300)),
]


def needs(kind: str) -> None:
    missing = [name for name in DISK_PROGRAMS[kind] if find_program(name) is None]
    if missing:
        pytest.skip(f"no {missing[0]}: apt-get install {DISK_PROGRAMS[kind][missing[0]]}")


def content(place: Path, **fields: object) -> Content:
    place.mkdir(parents=True)
    tree = Tree()
    deb_place = place.parent / f"{place.name}.deb"
    unpack([package(deb_place, MEMBERS)], [File("etc/own", b"own")], place, tree, Silent())
    settle(place, tree)
    entries = tuple(tree.entries())
    return Content(folder=place, entries=entries, identity=IDENTITY, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(DISK_PROGRAMS))
def test_the_same_content_makes_the_same_bytes_elsewhere_and_later(
    kind: str, tmp_path: Path
) -> None:
    needs(kind)
    images = []
    for number, name in enumerate(("one", "elsewhere/two")):
        made = content(tmp_path / name)
        for path in made.folder.rglob("*"):
            os.utime(path, (10**9 + number, 10**9 + number), follow_symlinks=False)
        image = tmp_path / f"{number}.img"
        make(kind, made, image, Silent())
        images.append(image.read_bytes())
    assert images[0] == images[1]


def test_an_ext4_is_sound_and_holds_what_it_should(tmp_path: Path) -> None:
    needs("ext4")
    image = tmp_path / "disk.ext4"
    make("ext4", content(tmp_path / "tree"), image, Silent())
    assert [path.name for path in tmp_path.glob("*.debugfs")] == []
    fsck = subprocess.run(
        [find_program("e2fsck") or "e2fsck", "-fn", str(image)], capture_output=True, text=True
    )
    assert fsck.returncode == 0, fsck.stdout

    def debugfs(request: str) -> str:
        argv = [find_program("debugfs") or "debugfs", "-R", request, str(image)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    told = debugfs("stat /usr/bin/su")
    assert "Mode:  04755" in told
    assert "User:     0   Group:     0" in told
    assert "Links: 2" in told
    assert debugfs("cat /many/299") == "299"
    assert debugfs('cat "/etc/a ""quoted"" näme"') == "x"
    assert 'Fast link dest: "su"' in debugfs("stat /usr/bin/link")
    assert "Mode:  01777" in debugfs("stat /tmp")
    assert f"{IDENTITY[:8]}-" in debugfs("stats")


def test_an_ext4_that_is_too_small_is_told_with_its_size(tmp_path: Path) -> None:
    needs("ext4")
    made = content(tmp_path / "tree", size_mib=8)
    (made.folder / "many/0").write_bytes(os.urandom(9 << 20))
    with pytest.raises(BuildError, match="an ext4 disk of 8 MiB") as caught:
        make("ext4", made, tmp_path / "disk.ext4", Silent())
    assert "larger" in str(caught.value.remedy)


def test_a_size_left_open_leaves_room_to_write(tmp_path: Path) -> None:
    entries = [Directory("a"), Stored("a/b", 0o644, 100 << 20)]
    made = Content(folder=tmp_path, entries=entries, identity=IDENTITY)
    assert 160 <= ext4_size_mib(made) <= 200


def test_commands_for_debugfs_name_files_as_they_are() -> None:
    entries = [
        Directory("a b", mode=0o1777),
        Stored('a b/"', 0o755, 1, links=2),
        HardLink("other", 'a b/"'),
        Symlink("link", "to here"),
    ]
    assert list(ext4_script(entries)) == [
        'mkdir "/a b"',
        'sif "/a b" mode 041777',
        'write "a b/""" "/a b/"""',
        'sif "/a b/""" mode 0100755',
        'sif "/a b/""" links_count 2',
        'ln "/a b/""" "/other"',
        'symlink "/link" "to here"',
    ]


@pytest.mark.parametrize("kind", sorted(DISK_PROGRAMS))
def test_the_programs_tell_their_versions(kind: str) -> None:
    needs(kind)
    versions = tool_versions(kind)
    assert set(versions) == set(DISK_PROGRAMS[kind])
    assert all(version[0].isdigit() for version in versions.values())


def test_packages_made_by_hand_are_packages_to_dpkg(tmp_path: Path) -> None:
    needs("ext4")
    made = deb(tmp_path / "x.deb", MEMBERS)
    listed = subprocess.run(["dpkg-deb", "-c", made], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == len(MEMBERS)


ODD_TARGETS = ["x\ndump /etc/own out", '"' * 4090 + "dump"]
"""A second line for debugfs, and a line so long that debugfs takes it for two."""


@pytest.mark.parametrize("target", ODD_TARGETS)
def test_nothing_a_package_says_becomes_a_command_of_its_own(target: str) -> None:
    with pytest.raises(BuildError, match="'link'"):
        list(ext4_script([Symlink("link", target)]))


def test_a_link_with_a_line_break_in_it_is_refused_with_its_package(tmp_path: Path) -> None:
    place = tmp_path / "tree"
    place.mkdir()
    odd = package(tmp_path / "x.deb", [symlink("./bin/link", ODD_TARGETS[0])])
    with pytest.raises(BuildError, match="control characters"):
        unpack([odd], [], place, Tree(), Silent())
