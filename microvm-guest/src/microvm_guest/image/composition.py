"""Disks made of Debian packages, kept by what is in them.

    disk = compose(DiskSpec(packages=("openvpn", "curl")), Silent())
    disk.path, disk.format, disk.size_bytes, disk.packages

A disk is found again by what was asked for, without asking apt. One that is built is found by the
packages' hashes as well: if they, the programs that make file systems and our own recipe are what
they were, the disk that is there is taken. No package's script is run; `finishing` says what is
made in their stead, and what is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from microvm_guest.image import requirements
from microvm_guest.image.cache import (
    Cache,
    canonical_json,
    facts_of,
    open_cache,
    require_space,
)
from microvm_guest.image.disks import (
    DISK_MANIFEST,
    GuestDisk,
    check_name,
    disk_names,
    load_disk,
    read_line,
    whole_disks,
)
from microvm_guest.image.errors import BuildError, ImageDamaged, SourceUnavailable
from microvm_guest.image.filesystems import MIB, Content, make, tool_versions
from microvm_guest.image.layout import CacheLayout, cache_layout
from microvm_guest.image.loader_cache import add_loader_cache, can_make_loader_cache
from microvm_guest.image.packages import Package, check_names, fetch_all, resolve
from microvm_guest.image.tree import Tree
from microvm_guest.image.unpack import settle, unpack
from microvm_guest.image.verify import damage

if TYPE_CHECKING:
    from microvm_guest.image.cpio import File
    from microvm_guest.image.progress import Progress

DISK_FORMAT: Final = 1
FORMATS: Final = tuple(sorted(requirements.DISK_PROGRAMS))
DEFAULT_FORMAT: Final = "erofs"
MAX_SIZE_MIB: Final = 1 << 20
_HERE: Final = Path(__file__).parent
_DISK_CODE: Final = tuple(
    _HERE / f"{name}.py"
    for name in (
        "composition", "cpio", "filesystems", "finishing", "loader_cache", "packages", "rootfs",
        "tree", "unpack", "untar",
    )
)  # fmt: skip
"""What decides how a disk comes out, hashed with what is asked for."""


def _tuple(files: Iterable[File]) -> tuple[File, ...]:
    return tuple(files)


@attrs.frozen(kw_only=True)
class DiskSpec:
    """What disk to make."""

    packages: tuple[str, ...] = attrs.field(converter=check_names)
    """Names of Debian packages; what they depend on comes along, what they recommend does not."""
    format: str = DEFAULT_FORMAT
    """``erofs`` or ``squashfs``, which can only be read, or ``ext4``."""
    essential: bool = True
    """With what Debian takes for granted: a shell, coreutils, grep, perl. Without it, what is there
    is what the packages ask for, and a root file system may lack a shell."""
    trim: bool = True
    """Without manual pages, translations and documentation; licences stay."""
    size_mib: int | None = None
    """Of an ext4; None: the content, a fifth more, and 64 MiB."""
    files: tuple[File, ...] = attrs.field(default=(), converter=_tuple)
    """Files of your own, in places that no package has."""
    name: str | None = None
    """A name to find the disk by; it means this disk from now on."""
    fresh: bool = False
    """Ask apt for the newest packages, whether there is a disk or not."""
    force: bool = False
    """Build it although it is there."""

    def __attrs_post_init__(self) -> None:
        if not self.packages and not self.essential:
            raise BuildError("A disk of no packages is empty.", remedy="Name at least one.")
        if self.format not in FORMATS:
            raise BuildError(
                f"Disks can't be made as {self.format!r}.", remedy=f"Known: {', '.join(FORMATS)}."
            )
        if self.size_mib is not None and self.format != "ext4":
            raise BuildError(
                f"A disk with {self.format} is as large as what is on it.",
                remedy="Give a size with ext4 only.",
            )
        if self.size_mib is not None and not 8 <= self.size_mib <= MAX_SIZE_MIB:
            raise BuildError(
                f"A disk can't have {self.size_mib} MiB.", remedy=f"Give 8 to {MAX_SIZE_MIB}."
            )
        if self.name is not None:
            check_name(self.name)

    @property
    def request(self) -> str:
        """Sixteen hex digits for what is asked for, and for how this version makes it."""
        asked = {
            "arch": platform.machine(),
            "essential": self.essential,
            "files": [[file.name, file.mode, _sha256(file.data)] for file in self.files],
            "filesystem": self.format,
            "format": DISK_FORMAT,
            "packages": self.packages,
            "size_mib": self.size_mib,
            "trim": self.trim,
        }
        code = [_sha256(path.read_bytes()) for path in _DISK_CODE]
        return _sha256(json.dumps([asked, code], sort_keys=True).encode())[:16]


def compose(spec: DiskSpec, progress: Progress, layout: CacheLayout | None = None) -> GuestDisk:
    """The disk that `spec` describes: from the cache, or made now.

    Takes a millisecond when it is there, with no lock and nothing written; else as long as fetching
    and compressing do. Another process that builds is waited for then. A `KeyboardInterrupt`
    leaves nothing half done.

    Raises:
        RequirementsMissing: programs that this host lacks, and the command that installs them.
        SourceUnavailable: apt knows no such package, or can't fetch it.
        BuildError: packages that contradict each other, or don't fit the size asked for.
        CacheError: the cache can't be written.
    """
    cache_paths = cache_layout() if layout is None else layout
    if not (spec.fresh or spec.force):
        disk = _present(spec, cache_paths)
        if disk is not None and spec.name in (None, *disk_names(cache_paths).get(disk.id, ())):
            return disk
    try:
        with open_cache(cache_paths, lambda text: progress.update(text, 0, 0)) as cache:
            disk = None if spec.fresh or spec.force else _present(spec, cache.layout)
            if disk is None:
                disk = _Composition(spec, progress, cache).run()
            if spec.name is not None:
                cache.name(spec.name, disk.id)
            return disk
    finally:
        progress.close()


def composed(spec: DiskSpec, layout: CacheLayout | None = None) -> GuestDisk | None:
    """The disk that `spec` describes, if it has been made; nothing is made or fetched now."""
    return _present(spec, cache_layout() if layout is None else layout)


def pointer_of(request: str) -> str:
    """The name of the pointer to the disk for a request, among those to images."""
    return f"disk-{request}"


def _present(spec: DiskSpec, layout: CacheLayout) -> GuestDisk | None:
    disk_id = read_line(layout.pointer(pointer_of(spec.request)))
    if disk_id is None:
        return None
    try:
        return load_disk(layout.disks / disk_id)
    except ImageDamaged:
        return None


@attrs.frozen
class _Composition:
    spec: DiskSpec
    progress: Progress
    cache: Cache

    def run(self) -> GuestDisk:
        spec, layout = self.spec, self.cache.layout
        if not requirements.has_apt(requirements.find_program):
            raise SourceUnavailable(
                "There is no apt here to fetch packages with.",
                remedy="Make a root file system with your distribution's own tools and start from "
                "that, or copy the cache from a Debian.",
            )
        requirements.check(
            requirements.DISK_PROGRAMS[spec.format],
            {},
            what="a disk",
            which=requirements.find_program,
        )
        self.progress.update("asking apt for the packages", 0, 0)
        with self.cache.work_folder() as empty:
            wanted = resolve(spec.packages, essential=spec.essential, empty=empty)
        manifest: dict[str, Any] = {
            "arch": platform.machine(),
            "filesystem": spec.format,
            "format": DISK_FORMAT,
            "loader_cache": can_make_loader_cache(),
            "tools": tool_versions(spec.format),
        }
        hashes = sorted((one.package, one.sha256) for one in wanted)
        recipe = _sha256(json.dumps([spec.request, hashes, manifest], sort_keys=True).encode())
        manifest["recipe"] = recipe
        disk = next((one for one in whole_disks(layout) if one.manifest["recipe"] == recipe), None)
        if disk is None or (spec.force and damage(disk.path.parent, disk.manifest["files"])):
            packages = fetch_all(self.cache, wanted, self.progress)
            disk = self._build(packages, manifest)
        self.cache.point(pointer_of(spec.request), disk.id)
        return disk

    def _build(self, packages: list[Package], manifest: dict[str, Any]) -> GuestDisk:
        spec, layout = self.spec, self.cache.layout
        # Packages unpack to three or four times their size; the image comes on top.
        need = sum(one.deb.stat().st_size for one in packages) * 8 + 64 * MIB
        require_space(layout, need, "making this disk")
        tree = Tree(trim=spec.trim)
        with self.cache.work_folder() as work:
            folder, done = work / "tree", work / "disk"
            folder.mkdir(0o700)
            done.mkdir()
            try:
                unpack(packages, spec.files, folder, tree, self.progress)
                settle(folder, tree)
                if manifest["loader_cache"]:
                    add_loader_cache(folder, tree)
                content = Content(
                    folder=folder,
                    entries=tuple(tree.entries()),
                    identity=manifest["recipe"][:32],
                    size_mib=spec.size_mib,
                )
                make(spec.format, content, done / f"disk.{spec.format}", self.progress)
            finally:
                _make_removable(folder)
            manifest["packages"] = {
                one.name: {"version": one.version, "sha256": one.sha256} for one in packages
            }
            manifest["files"] = {path.name: facts_of(path) for path in sorted(done.iterdir())}
            text = canonical_json(manifest)
            (done / DISK_MANIFEST).write_bytes(text)
            place = layout.disks / _sha256(text)[:16]
            self.cache.publish(done, place)
        return load_disk(place)


def _make_removable(folder: Path) -> None:
    """A directory of a package that may not be written could not be emptied either."""
    for path, _folders, _names in os.walk(folder):
        os.chmod(path, 0o700)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
