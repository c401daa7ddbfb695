"""A kernel source is recognised, named, unpacked or refused with a reason."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microvm_guest.image.cache import open_cache
from microvm_guest.image.errors import BuildError, SourceUnavailable
from microvm_guest.image.layout import CacheLayout
from microvm_guest.image.progress import Silent
from microvm_guest.image.source import (
    LEFTOVERS,
    DebianSource,
    FileSource,
    PreparedSource,
    Source,
    TreeSource,
    choose_package,
    given_source,
    prepare,
    series_of,
    usable,
)

MakeTree = Callable[..., Path]


@contextmanager
def prepared(layout: CacheLayout, source: Source) -> Iterator[PreparedSource]:
    with (
        open_cache(layout, lambda text: pytest.fail(text)) as cache,
        prepare(source, cache, Silent()) as found,
    ):
        yield found


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def pack(tree: Path, mode: str) -> Path:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tree, arcname="linux-source-6.1")
    path = tree.with_name(f"linux.tar.{mode}")
    path.write_bytes(PACKERS[mode](packed.getvalue()))
    return path


@pytest.mark.parametrize("mode", sorted(PACKERS))
def test_a_tar_file_is_unpacked_whatever_packs_it(
    layout: CacheLayout, make_tree: MakeTree, mode: str
) -> None:
    source = given_source(pack(make_tree(), mode))
    assert isinstance(source, FileSource)
    with prepared(layout, source) as found:
        assert found.version == "6.1.7"
        assert found.output == found.tree
        assert (found.tree / "Kconfig").read_text() == "mainmenu\n"
    assert not found.tree.exists()


def test_a_debian_package_is_unpacked(
    layout: CacheLayout, make_tree: MakeTree, tmp_path: Path
) -> None:
    inside = tmp_path / "pkg/usr/src"
    inside.mkdir(parents=True)
    pack(make_tree(), "xz").rename(inside / "linux-source-6.1.tar.xz")
    control = tmp_path / "pkg/DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        "Package: linux-source-6.1\nVersion: 6.1.7-1\nArchitecture: all\n"
        "Maintainer: a <a@b>\nDescription: d\n"
    )
    deb = tmp_path / "linux-source-6.1_6.1.7-1_all.deb"
    subprocess.run(["dpkg-deb", "-b", tmp_path / "pkg", deb], check=True, capture_output=True)
    for source in (given_source(deb), DebianSource(deb)):
        with prepared(layout, source) as found:
            assert found.version == "6.1.7"
    assert DebianSource(deb).identity == "debian linux-source-6.1 6.1.7-1"


def test_a_tree_is_built_elsewhere(layout: CacheLayout, make_tree: MakeTree) -> None:
    tree = make_tree()
    source = given_source(tree)
    assert isinstance(source, TreeSource)
    with prepared(layout, source) as found:
        assert found.tree == tree
        assert found.output.parent == layout.work


def test_an_archive_cut_short_is_refused_and_nothing_is_left(
    layout: CacheLayout, make_tree: MakeTree
) -> None:
    path = pack(make_tree(), "xz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BuildError, match="unpacking"), prepared(layout, given_source(path)):
        pass
    assert list(layout.work.iterdir()) == []


def test_a_file_that_is_no_archive_is_refused(layout: CacheLayout, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(bytes(range(256)) * 64)
    source = given_source(tmp_path / "junk")
    with pytest.raises(BuildError, match="unpacking"), prepared(layout, source):
        pass


def test_an_archive_of_something_else_is_refused(layout: CacheLayout, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "README").touch()
    source = given_source(pack(other, "gz"))
    with pytest.raises(SourceUnavailable, match="no Makefile"), prepared(layout, source):
        pass


def test_an_archive_can_not_write_outside(layout: CacheLayout, tmp_path: Path) -> None:
    (tmp_path / "payload").write_text("x")
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.add(tmp_path / "payload", arcname="linux/../../../escaped")
    with pytest.raises(BuildError), prepared(layout, given_source(evil)):
        pass
    assert not list(tmp_path.rglob("escaped"))


def test_a_compressed_bomb_that_is_no_archive_is_refused_soon(
    layout: CacheLayout, tmp_path: Path
) -> None:
    (tmp_path / "bomb.xz").write_bytes(lzma.compress(b"x" * (64 << 20), preset=0))
    with pytest.raises(BuildError), prepared(layout, given_source(tmp_path / "bomb.xz")):
        pass


@pytest.mark.parametrize("version", [(5, 15, 0), (6, 0, 19)])
def test_a_kernel_before_6_1_is_too_old(
    layout: CacheLayout, make_tree: MakeTree, version: tuple[int, int, int]
) -> None:
    source = given_source(make_tree(version=version))
    with pytest.raises(SourceUnavailable, match="too old"), prepared(layout, source):
        pass


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_a_tree_that_was_built_in_is_refused_with_the_way_out(
    make_tree: MakeTree, leftover: str
) -> None:
    tree = make_tree()
    (tree / leftover).parent.mkdir(parents=True, exist_ok=True)
    (tree / leftover).mkdir()
    with pytest.raises(SourceUnavailable, match="built in") as caught:
        given_source(tree)
    assert "mrproper" in str(caught.value.remedy)


def test_a_folder_that_is_no_kernel_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="no Kconfig"):
        given_source(tmp_path)


def test_a_device_is_no_source() -> None:
    with pytest.raises(SourceUnavailable, match="neither a file nor a folder"):
        given_source(Path("/dev/zero"))


def test_a_sources_identity_changes_with_its_content(make_tree: MakeTree) -> None:
    tree = make_tree()
    before = given_source(tree).identity
    assert given_source(tree).identity == before
    (tree / "Kconfig").write_text("mainmenu 2\n")
    assert given_source(tree).identity != before
    packed = pack(tree, "gz")
    before = given_source(packed).identity
    packed.write_bytes(packed.read_bytes() + b"\0")
    assert given_source(packed).identity != before


def test_of_the_known_packages_the_best_tried_is_chosen() -> None:
    bookworm = ("linux-source", "linux-source-6.1", "linux-source-6.12")
    assert choose_package(bookworm) == "linux-source-6.1"
    assert choose_package(("linux-source-6.12",)) == "linux-source-6.12"
    assert choose_package(("linux-source-6.8.0", "linux-source-6.11.0")) == "linux-source-6.11.0"
    assert choose_package(("linux-source-5.10", "linux-source")) is None
    assert choose_package(()) is None


def test_packages_of_old_series_are_passed_over() -> None:
    names = ("linux-source-5.15.0", "linux-source-6.0", "linux-source-6.10", "linux-source-6.2.0")
    assert usable(names) == ["linux-source-6.2.0", "linux-source-6.10"]


def test_a_series_is_two_numbers() -> None:
    assert series_of("6.12.117") == (6, 12)
