"""From packages to a folder: nothing leaves it, and nothing in it is more than was bounded."""

import os
import re
import resource
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from microvm_guest.image.cpio import File
from microvm_guest.image.errors import BuildError
from microvm_guest.image.loader_cache import add_loader_cache, can_make_loader_cache
from microvm_guest.image.packages import Package
from microvm_guest.image.progress import Silent
from microvm_guest.image.tree import Tree
from microvm_guest.image.unpack import settle, unpack

from .debs import deb, folder, hard_link, member, symlink

Members = Iterable[tuple[object, bytes]]


def package(place: Path, members: object, compression: str = "") -> Package:
    made = deb(place, members, compression)  # type: ignore[arg-type]
    return Package(name=place.stem, version="1", sha256="", deb=made)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    made.mkdir(mode=0o700)
    return made


def unpacked(place: Path, *packages: Package, files: Iterable[File] = ()) -> Tree:
    tree = Tree()
    unpack(packages, files, place, tree, Silent())
    settle(place, tree)
    return tree


SHELL = [
    folder("./"),
    folder("./bin/"),
    member("./bin/sh", b"#!", mode=0o755),
    hard_link("./bin/bash", "./bin/sh"),
    symlink("./bin/rbash", "bash"),
    member("./usr/share/base-passwd/passwd.master", b"root:*:0:0::/root:/bin/bash\n"),
]


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_packages_become_a_system_with_what_their_scripts_would_have_made(
    place: Path, tmp_path: Path, compression: str
) -> None:
    unpacked(place, package(tmp_path / "shell.deb", SHELL, compression))
    assert (place / "usr/bin/sh").read_bytes() == b"#!"
    assert (place / "usr/bin/sh").stat().st_ino == (place / "usr/bin/bash").stat().st_ino
    assert (place / "bin").readlink() == Path("usr/bin")
    assert (place / "usr/bin/rbash").readlink() == Path("bash")
    assert (place / "etc/passwd").read_text() == "root:*:0:0::/root:/bin/bash\n"
    assert (place / "etc/hosts").read_text().startswith("127.0.0.1 localhost")
    assert stat.S_IMODE((place / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((place / "root").stat().st_mode) == 0o700
    assert (place / "var/run").readlink() == Path("/run")
    assert not os.path.lexists(place / "lib64")  # nothing is in usr/lib64


def test_alternatives_and_the_bundle_of_certificates_are_made(place: Path, tmp_path: Path) -> None:
    tree = unpacked(
        place,
        package(
            tmp_path / "ca.deb",
            [
                member("./usr/share/ca-certificates/mozilla/b.crt", b"B\n\n"),
                member("./usr/share/ca-certificates/mozilla/a.crt", b"A"),
                member("./usr/bin/mawk", mode=0o755),
            ],
        ),
    )
    assert (place / "etc/ssl/certs/ca-certificates.crt").read_bytes() == b"A\nB\n"
    assert (place / "usr/bin/awk").readlink() == Path("/usr/bin/mawk")
    assert "usr/bin/pager" not in tree


def test_the_users_own_files_are_there_and_stand_in_nobodys_place(
    place: Path, tmp_path: Path
) -> None:
    shell = package(tmp_path / "shell.deb", SHELL)
    files = [File("etc/hostname", b"mine\n"), File("opt/run", b"#!", mode=0o755)]
    unpacked(place, shell, files=files)
    assert (place / "etc/hostname").read_text() == "mine\n"
    assert os.access(place / "opt/run", os.X_OK)
    with pytest.raises(BuildError, match="is in shell as well"):
        unpack([shell], [File("usr/bin/sh", b"")], tmp_path / "other", Tree(), Silent())


ESCAPES = {
    "link then file": [symlink("./a", "{outside}"), member("./a/file", b"evil")],
    "link of two packages": [symlink("./usr/a", "../../outside"), member("./usr/a/file", b"evil")],
    "dots": [member("./../outside/file", b"evil")],
    "absolute": [member("{outside}/file", b"evil")],
    "hard link out": [hard_link("./a", "{outside}/precious"), member("./a", b"evil")],
    "over a link": [symlink("./a", "{outside}/file"), member("./a", b"evil")],
}


@pytest.mark.parametrize("members", ESCAPES.values(), ids=ESCAPES.keys())
def test_nothing_outside_is_touched_whatever_a_package_says(
    members: Members, place: Path, tmp_path: Path
) -> None:
    """Rows 77 and 79."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("as it was")
    for info, _ in members:
        info.name = info.name.format(outside=outside)  # type: ignore[attr-defined]
        info.linkname = info.linkname.format(outside=outside)  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match="evil 1 can't be unpacked"):
        unpacked(place, package(tmp_path / "evil.deb", members))
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "as it was"


def test_a_package_that_unpacks_to_more_than_the_bound_stops_there(
    place: Path, tmp_path: Path
) -> None:
    """Row 76: 64 MiB from some 64 KiB; refused by what the header says, before it is written."""
    bomb = package(tmp_path / "bomb.deb", [member("./zeros", bytes(64 << 20))], "gz")
    assert bomb.deb.stat().st_size < 1 << 17
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BuildError, match="more than 1 MiB"):
        unpack([bomb], [], place, Tree(), Silent(), max_bytes=1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "members",
    [
        [
            member("./usr/share/doc/x/a", bytes(300_000)),
            member("./usr/share/man/b", bytes(800_000)),
        ],
        [member("./usr/share/doc/x/a")] * 30,
        [folder("./")] * 30,
    ],
    ids=["bytes", "files", "folders"],
)
def test_what_is_left_out_counts_as_well(members: Members, place: Path, tmp_path: Path) -> None:
    """Row 78: somebody has to read past it."""
    bomb = package(tmp_path / "bomb.deb", members)
    with pytest.raises(BuildError, match="more than"):
        unpack([bomb], [], place, Tree(), Silent(), max_bytes=1 << 20, max_members=20)


def test_a_link_where_a_file_is_wanted_is_not_followed(place: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    odd = [symlink("./usr/share/base-passwd/passwd.master", str(secret))]
    unpacked(place, package(tmp_path / "odd.deb", odd))
    assert (place / "etc/passwd").read_text().startswith("root:")


LOADER = [
    member("./etc/ld.so.conf", b"/usr/lib\n"),
    member("./usr/lib/libx.so.1", b"no library"),
    folder("./var/cache/ldconfig"),
]


@pytest.mark.skipif(not can_make_loader_cache(), reason="no ldconfig, or no right to chroot")
def test_the_loaders_cache_is_made_and_what_it_was_made_with_is_not_kept(
    place: Path, tmp_path: Path
) -> None:
    tree = unpacked(place, package(tmp_path / "x.deb", LOADER))
    add_loader_cache(place, tree)
    assert "etc/ld.so.cache" in tree
    assert (place / "etc/ld.so.cache").stat().st_size > 0
    assert list((place / "var/cache/ldconfig").iterdir()) == []


@pytest.mark.parametrize("link", ["var/cache", "var/cache/ldconfig"])
@pytest.mark.skipif(not can_make_loader_cache(), reason="no ldconfig, or no right to chroot")
def test_the_loaders_cache_is_made_without_going_through_a_packages_link(
    place: Path, tmp_path: Path, link: str
) -> None:
    """Row 79."""
    outside = tmp_path / "outside"
    precious = outside / "cache/ldconfig/aux-cache"
    precious.parent.mkdir(parents=True)
    precious.write_text("as it was")
    target = outside / link.removeprefix("var").lstrip("/")
    odd = package(tmp_path / "odd.deb", [*LOADER[:2], symlink(f"./{link}", str(target))])
    tree = Tree()
    unpack([odd], [], place, tree, Silent())
    settle(place, tree)
    add_loader_cache(place, tree)
    assert precious.read_text() == "as it was"


def test_a_package_cut_short_is_named(place: Path, tmp_path: Path) -> None:
    good = package(tmp_path / "short.deb", [member("./file", os.urandom(100_000))])
    good.deb.write_bytes(good.deb.read_bytes()[:50_000])
    with pytest.raises(BuildError, match="short 1 can't be unpacked") as caught:
        unpacked(place, good)
    assert re.search("prune", str(caught.value.remedy))


def test_a_folder_that_may_not_be_written_gets_its_files_all_the_same(
    place: Path, tmp_path: Path
) -> None:
    unpacked(
        place,
        package(tmp_path / "x.deb", [folder("./closed", mode=0o555), member("./closed/in", b"x")]),
    )
    assert stat.S_IMODE((place / "closed").stat().st_mode) == 0o555
    assert (place / "closed/in").read_bytes() == b"x"
