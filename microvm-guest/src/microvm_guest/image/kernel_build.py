"""From a kernel source tree to a kernel: configure, check, compile, strip.

The same source, fragments and compiler give the same bytes: what the kernel would record of its
build (time, user, host, number) is fixed here, and it is built with relative paths.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from microvm_guest.image.errors import KernelConfigError
from microvm_guest.image.process import run
from microvm_guest.image.source import PreparedSource, series_of
from microvm_guest.kernel import fragment_paths
from microvm_guest.kernel.architectures import ARCHITECTURES
from microvm_guest.kernel.kconfig import merge, parse, render, unmet
from microvm_guest.kernel.symbols import adapt

if TYPE_CHECKING:
    from microvm_guest.image.progress import Progress

EPOCH = "1970-01-01T00:00:00Z"
ENVIRONMENT: Mapping[str, str] = {
    "KBUILD_BUILD_TIMESTAMP": EPOCH,
    "KBUILD_BUILD_USER": "microvm",
    "KBUILD_BUILD_HOST": "microvm",
    "KBUILD_BUILD_VERSION": "1",
    "SOURCE_DATE_EPOCH": "0",
}
BUILD_BYTES = 2200 << 20
"""A 6.12 tree unpacked and built, with a margin."""

ESTIMATED_STEPS = 1500
"""What make prints for the first build anybody does; later ones know better."""

_STEP = re.compile(r"  [A-Z][A-Z0-9_]*  +\S")


@attrs.frozen(kw_only=True)
class BuiltKernel:
    """The files of a finished kernel, in a work folder."""

    elf: Path
    """Stripped; the PVH note is still there."""
    compressed: Path
    config: Path
    steps: int
    """Lines make printed, for the next build's progress."""


def build_kernel(
    source: PreparedSource,
    folder: Path,
    *,
    arch: str,
    jobs: int,
    progress: Progress,
    expected_steps: int = ESTIMATED_STEPS,
) -> BuiltKernel:
    """Build the guest kernel and put its files into `folder`.

    Raises:
        KernelConfigError: symbols of the fragments did not take effect.
        BuildError: make failed.
    """
    target = ARCHITECTURES[arch]
    make = ["make", "-C", str(source.tree), f"ARCH={target.kbuild_arch}"]
    if source.output != source.tree:
        make.append(f"O={source.output}")
    progress.update("configuring the kernel", 0, 0)
    configure(source, make, arch)
    label = f"building Linux {source.version}"
    steps = 0

    def on_line(line: str) -> None:
        nonlocal steps
        if _STEP.match(line):
            steps += 1
            progress.update(label, steps, max(expected_steps, steps + 1))

    progress.update(label, 0, expected_steps)
    run(
        [*make, f"-j{jobs}", target.compressed, "vmlinux"],
        what="building the kernel",
        env=ENVIRONMENT,
        on_line=on_line,
    )
    elf, compressed, config = (folder / name for name in ("vmlinux", "bzImage", "config"))
    strip = ["strip", "--strip-all", "-o", str(elf), str(source.output / "vmlinux")]
    run(strip, what="stripping the kernel")
    shutil.copyfile(source.output / target.compressed_path, compressed)
    shutil.copyfile(source.output / ".config", config)
    return BuiltKernel(elf=elf, compressed=compressed, config=config, steps=steps)


def configure(source: PreparedSource, make: list[str], arch: str) -> None:
    """Write ``.config``: tinyconfig, then the fragments, then what follows from both.

    Raises:
        KernelConfigError: the result is not what the fragments ask for.
    """
    wanted = merge(parse(path.read_text()) for path in fragment_paths(arch))
    wanted = adapt(wanted, series_of(source.version))
    place = source.output / ".config"
    run([*make, "tinyconfig"], what="configuring the kernel", env=ENVIRONMENT)
    place.write_text(render(merge([parse(place.read_text()), wanted])))
    run([*make, "olddefconfig"], what="configuring the kernel", env=ENVIRONMENT)
    if lost := unmet(wanted, parse(place.read_text())):
        raise KernelConfigError(
            f"Linux {source.version} did not take these settings: "
            f"{', '.join(str(one) for one in lost)}.",
            symbols=[one.symbol for one in lost],
            remedy="A symbol renamed or removed upstream belongs into the table of "
            "microvm_guest/kernel/symbols.py; a tested kernel is 6.1.",
        )
