"""Which of a kernel's modules are needed, and in which order they go in. Pure.

A module says itself what it depends on (`.modinfo`, as modinfo(8) prints it), so that the files of
a package are enough: no depmod, which would want a module tree of its own.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SUFFIX = re.compile(r"\.ko(\.xz)?$")


def module_name(path: str) -> str:
    """The name of the module in a file: without its folder and suffixes, always with ``_``."""
    return _SUFFIX.sub("", PurePosixPath(path).name).replace("-", "_")


def built_in(listing: str) -> frozenset[str]:
    """The names in a kernel's `modules.builtin`."""
    return frozenset(module_name(line) for line in listing.split())


def plain(file: str, data: bytes) -> bytes:
    """A module's ELF object: kernels from Debian 13 on have them compressed."""
    return lzma.decompress(data) if file.endswith(".xz") else data


def depends(module: bytes) -> tuple[str, ...]:
    """The names of the modules that this one can't do without."""
    found = _DEPENDS.search(module)
    return (
        tuple(module_name(name) for name in found[1].decode().split(",") if name) if found else ()
    )


def load_order(
    wanted: Iterable[str],
    *,
    files: Mapping[str, str],
    builtin: frozenset[str],
    read: Callable[[str], bytes],
) -> dict[str, bytes]:
    """The modules to load, each behind those it depends on: name to ELF object.

    Args:
        wanted: Names.
        files: Name to file.
        builtin: What this kernel has without loading anything.
        read: Gives a file's content.

    Raises:
        KeyError: a module is neither a file nor built in.
    """
    order: dict[str, bytes] = {}
    for name in wanted:
        if name in order or name in builtin:
            continue
        module = plain(files[name], read(files[name]))
        needed = load_order(depends(module), files=files, builtin=builtin, read=read)
        order |= {need: needed[need] for need in needed if need not in order}
        order[name] = module
    return order
