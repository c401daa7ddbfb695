"""What is known of a file before it is booted, and what is not."""

import io
import shutil
from pathlib import Path

import pytest

from microvm.abc import ImageFacts
from microvm_guest.image.cpio import CharDevice, Directory, File, Symlink, archive
from microvm_guest.image.facts import built_in, image_facts, names

from ..written_images import put_disk, put_image

CONFIG = '# a comment\nCONFIG_TUN=y\nCONFIG_EXT4_FS=m\n# CONFIG_PCI is not set\nCONFIG_NAME="y"\n'
ENTRIES = (
    CharDevice("dev/null", 1, 3),
    Directory("tmp"),
    File("init", b"agent", mode=0o755),
    File("etc/empty", b""),
    Symlink("bin/sh", "/bin/busybox"),
)
NAMES = ["bin", "bin/sh", "dev", "dev/null", "etc", "etc/empty", "init", "tmp"]


def test_of_our_kernel_what_is_built_in_is_known_and_modules_are_not_counted(
    tmp_path: Path,
) -> None:
    image = put_image(tmp_path / "image", CONFIG)
    assert image_facts(image / "vmlinux") == ImageFacts(kernel_features=("TUN",))


def test_of_our_initramfs_the_files_are_known_and_that_no_package_is_in_it(tmp_path: Path) -> None:
    image = put_image(tmp_path / "image", initrd=archive(ENTRIES))
    facts = image_facts(image / "initrd.cpio")
    assert facts == ImageFacts(packages=(), files=[f"/{name}" for name in NAMES])


@pytest.mark.parametrize("kind", ["erofs", "squashfs", "ext4"])
def test_of_a_disk_of_ours_the_packages_are_known(tmp_path: Path, kind: str) -> None:
    disk = put_disk(tmp_path / "disk", ("curl", "libc6"), kind)
    assert image_facts(disk / f"disk.{kind}") == ImageFacts(packages=("curl", "libc6"))


def test_a_link_to_one_is_as_good(tmp_path: Path) -> None:
    disk = put_disk(tmp_path / "disk", ("curl",))
    (tmp_path / "mine").symlink_to(disk / "disk.erofs")
    assert image_facts(tmp_path / "mine") == ImageFacts(packages=("curl",))


def test_of_a_copy_nothing_is_known(tmp_path: Path) -> None:
    """It may have been written on."""
    disk = put_disk(tmp_path / "disk", ("curl",), "ext4")
    shutil.copyfile(disk / "disk.ext4", tmp_path / "disk.ext4")
    assert image_facts(tmp_path / "disk.ext4") is None
    shutil.copyfile(disk / "disk.ext4", disk / "copy.ext4")
    assert image_facts(disk / "copy.ext4") is None


def test_of_what_is_not_ours_or_not_whole_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    assert image_facts(tmp_path / "vmlinux") is None
    (tmp_path / "manifest.json").write_text('{"name": "an application"}')
    assert image_facts(tmp_path / "vmlinux") is None
    assert image_facts(tmp_path / "gone" / "vmlinux") is None
    without = put_image(tmp_path / "without", None)
    assert image_facts(without / "vmlinux") is None
    assert image_facts(without / "manifest.json") is None
    changed = put_image(tmp_path / "changed", CONFIG)
    (changed / "config").write_text(CONFIG + CONFIG)
    assert image_facts(changed / "vmlinux") is None


def test_settings_that_only_look_like_one_are_none() -> None:
    assert built_in("CONFIG_A=yes\nxCONFIG_B=y\n#CONFIG_C=y\nCONFIG_D=y") == ["D"]


def test_a_real_archives_names_are_read_and_what_follows_it_is_not() -> None:
    assert list(names(io.BytesIO(archive(ENTRIES) + b"more"))) == NAMES


def test_an_archive_that_is_cut_off_anywhere_is_none(tmp_path: Path) -> None:
    whole = archive(ENTRIES)
    end = whole.index(b"TRAILER!!!") + len(b"TRAILER!!!")
    for length in range(end):
        with pytest.raises(ValueError):
            list(names(io.BytesIO(whole[:length])))
    image = put_image(tmp_path / "image", initrd=whole[:200])
    assert image_facts(image / "initrd.cpio") is None
