"""``/etc/ld.so.cache``: where the dynamic loader finds libraries without searching for them.

It finds Debian's without it as well; with it, a program of thirty libraries starts a tenth
faster. The host's ldconfig(8) makes it, and has to change its root for that: as root, or as "root"
of a user namespace. Where neither is to be had a disk has no cache, and its manifest says so.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Final

from microvm_guest.image.cpio import Directory
from microvm_guest.image.process import run
from microvm_guest.image.requirements import find_program
from microvm_guest.image.tree import Stored, Tree

CACHE: Final = "etc/ld.so.cache"
CONFIG: Final = "etc/ld.so.conf"
_AUXILIARY: Final = "var/cache/ldconfig/aux-cache"
_AS_ROOT: Final = ("unshare", "--user", "--map-root-user")


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else _AS_ROOT


@functools.cache
def can_make_loader_cache() -> bool:
    """Whether this process may change its root, one way or the other."""
    if find_program("ldconfig") is None:
        return False
    argv = [*_as_root(), find_program("chroot") or "chroot", "/", "/bin/true"]
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def add_loader_cache(folder: Path, tree: Tree) -> None:
    """Make the cache of the libraries in a folder, and enter it into the tree.

    A tree without the loader's configuration needs none, and one that has a link where a
    directory should be gets none. ldconfig reads libraries' headers, as root of a folder; it runs
    nothing of what it finds there.

    Raises:
        BuildError: ldconfig failed.
    """
    if CONFIG not in tree or CACHE in tree or _leads_away(tree):
        return
    # -X: links are the packages' affair.
    argv = [*_as_root(), find_program("ldconfig") or "ldconfig", "-X", "-r", str(folder)]
    run(argv, what="making the loader's cache")
    auxiliary = folder / _AUXILIARY
    if _AUXILIARY not in tree:
        auxiliary.unlink(missing_ok=True)
        if "var/cache/ldconfig" not in tree and auxiliary.parent.exists():
            auxiliary.parent.rmdir()
    place = folder / CACHE
    place.chmod(0o644)
    tree.put(Stored(CACHE, 0o644, place.stat().st_size), "microvm")


def _leads_away(tree: Tree) -> bool:
    """Whether the way to what ldconfig leaves goes by a link: we are not within the folder."""
    parents = ("var", "var/cache", "var/cache/ldconfig")
    return any(not isinstance(tree.get(name), Directory | None) for name in parents)
