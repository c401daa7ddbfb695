"""Building a guest image: the order of things, and what is kept of each.

Kernels and images are cached apart. A kernel takes minutes and depends on its source and on how
it is configured; an image takes a second and depends on a kernel, the agent and busybox.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from microvm_guest.agent import build_id
from microvm_guest.image import requirements
from microvm_guest.image.cache import (
    Cache,
    canonical_json,
    facts_of,
    link_or_copy,
    open_cache,
    remove_tree,
    require_space,
)
from microvm_guest.image.cpio import archive
from microvm_guest.image.disks import disk_names, read_line
from microvm_guest.image.errors import (
    BuildError,
    ImageDamaged,
    ImageNotBuilt,
    SourceUnavailable,
)
from microvm_guest.image.images import (
    COMPRESSED_KERNEL,
    INITRD,
    KERNEL,
    KERNEL_CONFIG,
    MANIFEST,
    GuestImage,
    default_image,
    load_image,
)
from microvm_guest.image.kernel_build import BUILD_BYTES, ESTIMATED_STEPS, build_kernel
from microvm_guest.image.kernels import CachedKernel, find_kernel, kernel_key, list_kernels
from microvm_guest.image.layout import CacheLayout, cache_layout
from microvm_guest.image.process import output_of
from microvm_guest.image.programs import compile_agent, find_busybox
from microvm_guest.image.recipe import DEFAULT_ARCH, FORMAT, image_recipe, kernel_recipe
from microvm_guest.image.rootfs import rootfs
from microvm_guest.image.source import Source, debian_source, given_source, prepare
from microvm_guest.image.verify import damage
from microvm_guest.kernel.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from microvm_guest.image.progress import Progress


@attrs.frozen(kw_only=True)
class ImageSpec:
    """What image to build."""

    arch: str = DEFAULT_ARCH
    series: str | None = attrs.field(default=None)
    """A kernel series such as ``6.12``; None: the one already built, or the best tried one."""
    kernel_source: Path | None = None
    """A kernel tree, a tar file or a linux-source package, in place of Debian's."""
    jobs: int = attrs.field(factory=lambda: len(os.sched_getaffinity(0)))
    fresh_kernel: bool = False
    """Ask Debian for its newest kernel of the series, whether one is cached or not."""
    force: bool = False
    """Build the image, and put it in place, although it is there."""

    def __attrs_post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise BuildError(
                f"There is no kernel configuration for {self.arch}.",
                remedy=f"Known: {', '.join(ARCHITECTURES)}.",
            )
        if self.series is not None and not _is_series(self.series):
            raise BuildError(
                f"{self.series!r} is not a kernel series.", remedy="Give it like 6.1 or 6.12."
            )
        if self.jobs < 1:
            raise BuildError(f"{self.jobs} jobs can't build anything.", remedy="Give 1 or more.")
        if self.kernel_source is not None and self.series is not None:
            raise BuildError(
                "A series picks among Debian's kernels; a source of your own is what it is.",
                remedy="Give --series or --kernel-source, not both.",
            )


def _is_series(text: str) -> bool:
    parts = text.split(".")
    return len(parts) in (2, 3) and all(part.isascii() and part.isdigit() for part in parts)


def build_image(
    spec: ImageSpec, progress: Progress, layout: CacheLayout | None = None
) -> GuestImage:
    """Build the image that `spec` describes and make it the default one.

    Blocks for minutes when a kernel is to be built, for seconds when not, and not at all when
    the image is there. Another process that builds is waited for, and its work used. A
    `KeyboardInterrupt` stops the programs it runs; what is half done is removed, by the next
    build if this process was killed.

    Raises:
        RequirementsMissing: all that this host lacks, and the command that installs it.
        SourceUnavailable: the kernel's source can't be had.
        KernelConfigError: that kernel does not take our configuration.
        BuildError: a step failed; its last output is in the error.
        CacheError: the cache can't be written.
    """
    cache_paths = cache_layout() if layout is None else layout
    if (machine := platform.machine()) != spec.arch:
        raise BuildError(
            f"An image for {spec.arch} can't be built on {machine}.",
            remedy=f"Build it on {spec.arch} and copy the cache, or give a kernel of your own.",
        )
    try:
        with open_cache(cache_paths, lambda text: progress.update(text, 0, 0)) as cache:
            return _Build(spec, progress, cache).run()
    finally:
        progress.close()


@attrs.frozen
class _Build:
    spec: ImageSpec
    progress: Progress
    cache: Cache

    def run(self) -> GuestImage:
        present = None if self.spec.force or self.spec.fresh_kernel else self._present()
        if present is not None and self._fits(present):
            return present
        kernel = self._cached_kernel()
        if kernel is None:
            kernel = self._build_kernel()
        return self._build_image(kernel)

    # --- what is there -----------------------------------------------------------------------

    def _present(self) -> GuestImage | None:
        try:
            return default_image(self.spec.arch, self.cache.layout)
        except (ImageNotBuilt, ImageDamaged):
            return None

    def _fits(self, image: GuestImage) -> bool:
        """Whether the default image is what the spec asks for; one that asks nothing, takes it."""
        source, series = self.spec.kernel_source, self.spec.series
        if source is not None:
            return bool(image.manifest["kernel"]["source"] == given_source(source).identity)
        return series is None or image.kernel_version.startswith(f"{series}.")

    def _cached_kernel(self) -> CachedKernel | None:
        spec = self.spec
        if spec.fresh_kernel:
            return None
        kernel = find_kernel(
            list_kernels(self.cache.layout),
            recipe=kernel_recipe(spec.arch),
            source=given_source(spec.kernel_source).identity if spec.kernel_source else None,
            series=spec.series,
        )
        if kernel is not None and spec.force and damage(kernel.path, kernel.files):
            return None
        return kernel

    # --- the kernel --------------------------------------------------------------------------

    def _build_kernel(self) -> CachedKernel:
        spec, layout = self.spec, self.cache.layout
        programs = {**requirements.KERNEL_PROGRAMS, **requirements.AGENT_PROGRAMS}
        requirements.check(programs, requirements.KERNEL_HEADERS)
        if spec.kernel_source is None and not requirements.has_apt():
            raise SourceUnavailable(
                "There is no apt here to fetch the kernel's source with.",
                remedy="Give a source: microvm image build --kernel-source PATH",
            )
        require_space(layout, BUILD_BYTES)
        source: Source = (
            debian_source(self.cache, spec.series, self.progress)
            if spec.kernel_source is None
            else given_source(spec.kernel_source)
        )
        recipe, identity = kernel_recipe(spec.arch), source.identity
        earlier = list_kernels(layout)
        same = find_kernel(earlier, recipe=recipe, source=identity)
        if same is not None and not spec.force:
            return same  # the newest there is was built already
        began = time.monotonic()
        with self.cache.work_folder() as work:
            done = work / "kernel"
            done.mkdir()
            with prepare(source, self.cache, self.progress) as prepared:
                built = build_kernel(
                    prepared,
                    done,
                    arch=spec.arch,
                    jobs=spec.jobs,
                    progress=self.progress,
                    expected_steps=max((k.steps for k in earlier), default=ESTIMATED_STEPS),
                )
            files = {path.name: facts_of(path) for path in sorted(done.iterdir())}
            manifest = {
                "format": FORMAT,
                "arch": spec.arch,
                "recipe": recipe,
                "source": identity,
                "version": prepared.version,
                "steps": built.steps,
                "files": files,
                "built": {**_host_facts(), "seconds": round(time.monotonic() - began, 1)},
            }
            (done / "kernel.json").write_bytes(canonical_json(manifest))
            place = layout.kernels / kernel_key(recipe, identity, prepared.version)
            self.cache.publish(done, place)
        return CachedKernel(
            path=place,
            arch=spec.arch,
            recipe=recipe,
            source=identity,
            version=prepared.version,
            steps=built.steps,
            files=files,
        )

    # --- the image ---------------------------------------------------------------------------

    def _build_image(self, kernel: CachedKernel) -> GuestImage:
        layout, arch = self.cache.layout, self.spec.arch
        requirements.check(
            requirements.AGENT_PROGRAMS,
            {} if shutil.which("musl-gcc") else requirements.AGENT_HEADERS,
        )
        with self.cache.work_folder() as work:
            agent, compiler = compile_agent(work, self.progress)
            busybox = find_busybox(self.cache, work, arch, self.progress)
            self.progress.update("packing the image", 0, 0)
            entries = rootfs(agent=agent, busybox=busybox.program, applets=busybox.applets)
            done = work / "image"
            done.mkdir()
            (done / INITRD).write_bytes(archive(entries))
            for name in (KERNEL, COMPRESSED_KERNEL, KERNEL_CONFIG):
                link_or_copy(kernel.path / name, done / name)
            manifest = {
                "format": FORMAT,
                "arch": arch,
                "recipe": image_recipe(arch),
                "kernel": {
                    "version": kernel.version,
                    "source": kernel.source,
                    "recipe": kernel.recipe,
                },
                "agent": {"build": build_id(), "size": len(agent), "compiler": compiler},
                "busybox": {"version": busybox.version, "size": len(busybox.program)},
                "files": {path.name: facts_of(path) for path in sorted(done.iterdir())},
            }
            image_id = self._publish(done, manifest)
        self.cache.point(image_recipe(arch), image_id)
        return load_image(layout.image(image_id))

    def _publish(self, done: Path, manifest: Mapping[str, Any]) -> str:
        """Name the image by its content and put it in place, unless it is there and whole."""
        text = canonical_json(manifest)
        image_id = hashlib.sha256(text).hexdigest()[:16]
        place = self.cache.layout.image(image_id)
        if place.is_dir() and not damage(place, manifest["files"]):
            return image_id
        (done / MANIFEST).write_bytes(text)
        self.cache.publish(done, place)
        return image_id


def _host_facts() -> dict[str, str]:
    """What may make the same source come out otherwise elsewhere."""
    return {
        "compiler": output_of(["gcc", "--version"], what="asking gcc").splitlines()[0],
        "linker": output_of(["ld", "--version"], what="asking ld").splitlines()[0],
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
    }


def prune(layout: CacheLayout, progress: Progress, *, everything: bool = False) -> int:
    """Remove what `build_image` can make again; return the bytes that became free.

    The default image of this version of the package and its kernel stay, unless `everything`
    is to go, and so do disks that somebody gave a name. Images of other versions, other disks,
    downloads and leftovers of killed builds go.

    Raises:
        CacheError: the cache can't be written.
    """
    if not layout.root.is_dir():
        return 0
    with open_cache(layout, lambda text: progress.update(text, 0, 0)):
        before = _disk_use(layout.root)
        keep = set() if everything else _kept(layout)
        for folder in (
            layout.images,
            layout.kernels,
            layout.disks,
            layout.names,
            layout.pointers,
            layout.downloads,
        ):
            for path in sorted(folder.iterdir()):
                if path in keep:
                    continue
                if path.is_dir() and not path.is_symlink():
                    remove_tree(path)
                else:
                    path.unlink()
        return before - _disk_use(layout.root)


def _kept(layout: CacheLayout) -> set[Path]:
    keep: set[Path] = set()
    for arch in ARCHITECTURES:
        try:
            image = default_image(arch, layout)
        except (ImageNotBuilt, ImageDamaged):
            continue
        facts = image.manifest["kernel"]
        key = kernel_key(facts["recipe"], facts["source"], facts["version"])
        keep |= {image.path, layout.kernels / key, layout.pointer(image_recipe(arch))}
    for disk_id, names in disk_names(layout).items():
        keep |= {layout.disks / disk_id, *(layout.names / name for name in names)}
        keep |= {path for path in layout.pointers.glob("disk-*") if read_line(path) == disk_id}
    return keep


def _disk_use(root: Path) -> int:
    """Bytes on disk, files with several names counted once."""
    found = {}
    for folder, _folders, names in os.walk(root):
        for name in names:
            stat = os.lstat(os.path.join(folder, name))
            found[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())
