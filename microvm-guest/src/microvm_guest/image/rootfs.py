"""What is in the guest's initramfs. Pure: programs come in as bytes, entries go out.

The agent is ``/init`` and mounts ``/proc``, ``/sys`` and ``/dev``; busybox is everything else.
Whatever changes here changes the image: `recipe.py` hashes this file.
"""

from __future__ import annotations

from collections.abc import Iterable

from microvm_guest.image.cpio import CharDevice, Directory, Entry, File, Symlink

ACCOUNTS = """\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = """\
root:x:0:
tty:x:5:
nogroup:x:65534:
"""
HOSTS = """\
127.0.0.1 localhost microvm
::1 localhost
"""
PROFILE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PS1='\\u@\\h:\\w\\$ '
"""
FILES = {
    "etc/group": GROUP,
    "etc/hostname": "microvm\n",
    "etc/hosts": HOSTS,
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/passwd": ACCOUNTS,
    "etc/profile": PROFILE,
    "etc/resolv.conf": "",
    "etc/shells": "/bin/sh\n",
}
DIRECTORIES = {
    "dev": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr/local/bin": 0o755,
    "usr/local/sbin": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
LINKS = {
    "etc/mtab": "/proc/self/mounts",
    "sbin/init": "/init",
    "var/run": "/run",
}
NOT_LINKED = frozenset({"linuxrc"})
"""Applets left out: the kernel would take /linuxrc for an init of old times."""
BUSYBOX = "bin/busybox"


def rootfs(*, agent: bytes, busybox: bytes, applets: Iterable[str]) -> list[Entry]:
    """The entries of the initramfs.

    Args:
        agent: The agent, a static program for the guest's architecture.
        busybox: Likewise.
        applets: Paths of busybox's applets as ``busybox --list-full`` prints them, for example
            ``sbin/ip``; each becomes a link to it.
    """
    entries: list[Entry] = [
        File("init", agent, mode=0o755),
        File(BUSYBOX, busybox, mode=0o755),
        # /dev/console must be there before devtmpfs is: the kernel opens it for init.
        CharDevice("dev/console", 5, 1, mode=0o600),
        CharDevice("dev/null", 1, 3, mode=0o666),
    ]
    entries += [Directory(name, mode=mode) for name, mode in DIRECTORIES.items()]
    entries += [File(name, text.encode()) for name, text in FILES.items()]
    entries += [Symlink(name, target) for name, target in LINKS.items()]
    taken = {entry.name for entry in entries} | NOT_LINKED
    entries += [
        Symlink(applet, f"/{BUSYBOX}") for applet in sorted(set(applets)) if applet not in taken
    ]
    return entries
