"""Debian's kernels, the lab's own and the one that guests in it boot: fetched once and kept.

`<cache>/lab/images/<version>-<hash of the module list>/` holds `kernel`, the `vmlinuz` it came
from and, numbered in the order they are loaded, the modules. The cache, its lock and its work
folder are those that the guest image's builder uses: what can be seen there is complete.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from microvm_guest.image.cache import Cache, open_cache
from microvm_guest.image.debian import fetch, version_of
from microvm_guest.image.errors import BuildError, SourceUnavailable
from microvm_guest.image.layout import CacheLayout, cache_layout
from microvm_guest.image.process import output_of, run
from tools.lab import modules
from tools.lab.bzimage import vmlinux

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_guest.image.progress import Progress

STOCK = "linux-image-amd64"
CLOUD = "linux-image-cloud-amd64"
KERNEL = "kernel"
VMLINUZ = "vmlinuz"
_DEPENDS = re.compile(r"Depends: (linux-image-\S+)")


@attrs.frozen(kw_only=True)
class LabKernel:
    """A kernel in the cache."""

    path: Path

    @property
    def vmlinuz(self) -> Path:
        """The kernel as its package has it."""
        return self.path / VMLINUZ

    @property
    def kernel(self) -> Path:
        """What QEMU loads."""
        return self.path / KERNEL

    def modules(self) -> dict[str, bytes]:
        """Name to ELF object, in the order to load them."""
        files = sorted(self.path.glob("*.ko"))
        return {file.stem.partition("-")[2]: file.read_bytes() for file in files}


def lab_kernel(
    wanted: Sequence[str], progress: Progress, *, meta_package: str = STOCK, refresh: bool = False
) -> LabKernel:
    """The newest kernel in the cache with these modules; fetched if there is none, or on demand.

    Apt is asked no more than that: a lab does not get better with each security update.

    Raises:
        ImageError: there is no such kernel and it can't be had, or the cache can't be used.
    """
    layout = CacheLayout(cache_layout().root / "lab")
    suffix = hashlib.sha256(" ".join([meta_package, *wanted]).encode()).hexdigest()[:8]
    if not refresh and (kept := _newest(layout, suffix)):
        return kept
    with open_cache(layout, lambda sentence: progress.update(sentence, 0, 0)) as cache:
        # Another may have made it while we waited.
        if refresh or not (kept := _newest(layout, suffix)):
            kept = _make(cache, meta_package, wanted, suffix, progress)
        return kept


def _newest(layout: CacheLayout, suffix: str) -> LabKernel | None:
    kept = sorted(layout.images.glob(f"*-{suffix}"), key=lambda path: path.stat().st_mtime)
    return LabKernel(path=kept[-1]) if kept else None


def _make(
    cache: Cache, meta_package: str, wanted: Sequence[str], suffix: str, progress: Progress
) -> LabKernel:
    package = _package(meta_package)
    deb = fetch(cache, package, progress)
    place = cache.layout.image(f"{version_of(deb.name)}-{suffix}")
    if place.exists():
        return LabKernel(path=place)
    with cache.work_folder() as tree, cache.work_folder() as finished:
        progress.update(f"unpacking {package}", 0, 0)
        run(["dpkg-deb", "--extract", str(deb), str(tree)], what=f"unpacking {package}")
        _collect(tree, finished, wanted)
        cache.publish(finished, place)
    return LabKernel(path=place)


def _package(meta_package: str) -> str:
    depends = output_of(["apt-cache", "depends", meta_package], what="asking apt for its kernel")
    if found := _DEPENDS.search(depends):
        return found[1]
    raise SourceUnavailable(
        f"apt knows no kernel package behind {meta_package}.",
        remedy="Refresh its lists as root: apt-get update. The lab wants Debian's stock kernel.",
    )


def _collect(tree: Path, finished: Path, wanted: Sequence[str]) -> None:
    # lib is a link to usr/lib in newer packages' trees, and the folder itself in older ones.
    release = next(iter(tree.glob("**/lib/modules/*")))
    files = {modules.module_name(path.name): str(path) for path in release.glob("**/*.ko*")}
    builtin = modules.built_in((release / "modules.builtin").read_text())
    try:
        order = modules.load_order(
            wanted, files=files, builtin=builtin, read=lambda file: Path(file).read_bytes()
        )
    except KeyError as error:
        raise BuildError(
            f"Debian's kernel {release.name} has no module {error}.",
            remedy="A list of modules in tools/lab wants it.",
        ) from error
    for number, (name, module) in enumerate(order.items()):
        (finished / f"{number:02}-{name}.ko").write_bytes(module)
    bzimage = next(tree.glob("boot/vmlinuz-*")).read_bytes()
    (finished / VMLINUZ).write_bytes(bzimage)
    (finished / KERNEL).write_bytes(vmlinux(bzimage) or bzimage)
