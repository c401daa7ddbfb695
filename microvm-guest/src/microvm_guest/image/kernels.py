"""Finished kernels in the cache, found again by what they were built from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from microvm_guest.image.errors import ImageDamaged
from microvm_guest.image.images import check_size, read_manifest
from microvm_guest.image.source import PREFERRED_SERIES, series_of

if TYPE_CHECKING:
    from microvm_guest.image.layout import CacheLayout

KERNEL_MANIFEST = "kernel.json"


@attrs.frozen(kw_only=True)
class CachedKernel:
    """A kernel in the cache."""

    path: Path
    arch: str
    recipe: str
    source: str
    """A source's `identity`."""
    version: str
    steps: int
    """Lines its build printed."""
    files: Mapping[str, Mapping[str, Any]] = attrs.field(hash=False)

    @property
    def series(self) -> str:
        """``6.1``."""
        return ".".join(self.version.split(".")[:2])


def kernel_key(recipe: str, source: str, version: str) -> str:
    """The name of a kernel's folder."""
    return f"{version}-{hashlib.sha256(f'{recipe} {source}'.encode()).hexdigest()[:16]}"


def list_kernels(layout: CacheLayout) -> list[CachedKernel]:
    """Every whole kernel in the cache; damaged ones are passed over, and so built again."""
    kernels = []
    for path in sorted(layout.kernels.glob("*")):
        try:
            kernels.append(load_kernel(path))
        except ImageDamaged:
            continue
    return kernels


def load_kernel(path: Path) -> CachedKernel:
    """Read a kernel's manifest and see that its files are there.

    Raises:
        ImageDamaged: they are not.
    """
    manifest = read_manifest(path / KERNEL_MANIFEST)
    try:
        files = {str(name): dict(facts) for name, facts in manifest["files"].items()}
        for name, facts in files.items():
            check_size(path / name, int(facts["size"]))
        series_of(manifest["version"])
        return CachedKernel(
            path=path,
            arch=manifest["arch"],
            recipe=manifest["recipe"],
            source=manifest["source"],
            version=manifest["version"],
            steps=int(manifest["steps"]),
            files=files,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageDamaged(
            f"{path / KERNEL_MANIFEST} is damaged: {error}.", remedy="Build the image again."
        ) from error


def find_kernel(
    kernels: Iterable[CachedKernel],
    *,
    recipe: str,
    source: str | None = None,
    series: str | None = None,
) -> CachedKernel | None:
    """The kernel to use, or None. Pure.

    Args:
        kernels: What is in the cache.
        recipe: How it must be built.
        source: Only from this very source; None for any version that Debian brought.
        series: Then only of this series; None for the best tried series there is.
    """
    fitting = [
        kernel
        for kernel in kernels
        if kernel.recipe == recipe
        and (kernel.source == source if source else kernel.source.startswith("debian "))
        and series in (None, kernel.series)
    ]
    return max(fitting, key=_rank, default=None)


def _rank(kernel: CachedKernel) -> tuple[int, tuple[int, ...]]:
    tried = kernel.series in PREFERRED_SERIES
    preference = -PREFERRED_SERIES.index(kernel.series) if tried else -len(PREFERRED_SERIES)
    return preference, tuple(int(part) for part in kernel.version.split("."))
