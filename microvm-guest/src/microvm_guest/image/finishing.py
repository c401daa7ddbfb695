"""What packages' own install scripts would have made, where a guest can't do without. Pure.

No script of a package is run: they would have to run on the host, as root, and what they leave
depends on when they ran. Most only tell daemons that are not running. What is made here instead:
accounts, name service, folders, a handful of alternatives, the bundle of certificates. What is not:
users of services, other alternatives, file capabilities, dpkg's own database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from microvm_guest.image.cpio import Directory, File, Symlink
from microvm_guest.image.rootfs import ACCOUNTS, GROUP, HOSTS, PROFILE
from microvm_guest.image.tree import Stored, Tree, merged_links

PACKAGE: Final = "microvm"
"""Whose these entries are, in messages."""

FOLDERS: Final[Mapping[str, int]] = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
COPIES: Final[Mapping[str, str]] = {
    "etc/group": "usr/share/base-passwd/group.master",
    "etc/nsswitch.conf": "usr/share/base-files/nsswitch.conf",
    "etc/passwd": "usr/share/base-passwd/passwd.master",
    "etc/profile": "usr/share/base-files/profile",
    "root/.bashrc": "usr/share/base-files/dot.bashrc",
    "root/.profile": "usr/share/base-files/dot.profile",
}
"""Place -> where the package has it ready for its script to copy."""
DEFAULTS: Final[Mapping[str, str]] = {
    "etc/group": GROUP,
    "etc/hostname": "microvm\n",
    "etc/hosts": HOSTS,
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/passwd": ACCOUNTS,
    "etc/profile": PROFILE,
    "etc/resolv.conf": "",
}
LINKS: Final[Mapping[str, str]] = {
    "etc/mtab": "/proc/self/mounts",
    "var/lock": "/run/lock",
    "var/run": "/run",
}
ALTERNATIVES: Final[Mapping[str, tuple[str, ...]]] = {
    "usr/bin/awk": ("usr/bin/gawk", "usr/bin/mawk"),
    "usr/bin/nc": ("usr/bin/nc.openbsd", "usr/bin/nc.traditional"),
    "usr/bin/pager": ("usr/bin/less", "usr/bin/more"),
    "usr/bin/which": ("usr/bin/which.debianutils",),
    "usr/sbin/iptables": ("usr/sbin/iptables-nft", "usr/sbin/iptables-legacy"),
}
"""Link -> what it points at, the first of these that is there."""
CERTIFICATES: Final = "usr/share/ca-certificates"
BUNDLE: Final = "etc/ssl/certs/ca-certificates.crt"

ReadFile = Callable[[str], bytes]


def finish(tree: Tree, read: ReadFile) -> list[File]:
    """Add to `tree` what is missing; return the new files with their contents.

    Args:
        tree: All packages' entries.
        read: Gives the content of a file of the tree by its name.

    Raises:
        TreeError: a package has something else in a place that must be a directory.
    """
    for name, mode in FOLDERS.items():
        if name not in tree:
            tree.put(Directory(name, mode=mode), PACKAGE)
    contents: dict[str, bytes] = {}
    for place, source in COPIES.items():
        if place not in tree and isinstance(tree.get(source), Stored):  # not a link to follow
            contents[place] = read(source)
    for place, text in DEFAULTS.items():
        if place not in tree:
            contents.setdefault(place, text.encode())
    certificates = [name for name in tree.names_below(CERTIFICATES) if name.endswith(".crt")]
    if certificates and BUNDLE not in tree:
        contents[BUNDLE] = b"".join(read(name).rstrip(b"\n") + b"\n" for name in certificates)
    for place, target in LINKS.items():
        if place not in tree:
            tree.put(Symlink(place, target), PACKAGE)
    for place, candidates in ALTERNATIVES.items():
        found = next((name for name in candidates if name in tree), None)
        if found is not None and place not in tree:
            tree.put(Symlink(place, f"/{found}"), PACKAGE)
    for link in merged_links(entry.name for entry in tree.entries()):
        tree.put(link, PACKAGE)
    return [File(name, data) for name, data in sorted(contents.items())]
