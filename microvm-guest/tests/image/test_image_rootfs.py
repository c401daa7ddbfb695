"""The guest's file tree has what a guest cannot do without."""

from microvm_guest.image.cpio import CharDevice, Directory, File, Symlink, archive
from microvm_guest.image.rootfs import rootfs

APPLETS = ("bin/sh", "bin/busybox", "sbin/init", "linuxrc", "usr/bin/env", "bin/sh")
TREE = {entry.name: entry for entry in rootfs(agent=b"agent", busybox=b"busybox", applets=APPLETS)}


def test_the_agent_is_init_and_executable() -> None:
    assert TREE["init"] == File("init", b"agent", mode=0o755)


def test_the_kernel_finds_a_console_before_anything_is_mounted() -> None:
    assert TREE["dev/console"] == CharDevice("dev/console", 5, 1, mode=0o600)


def test_applets_are_links_to_busybox() -> None:
    assert TREE["bin/busybox"] == File("bin/busybox", b"busybox", mode=0o755)
    assert TREE["bin/sh"] == Symlink("bin/sh", "/bin/busybox")
    assert TREE["usr/bin/env"] == Symlink("usr/bin/env", "/bin/busybox")


def test_no_applet_takes_the_agents_place() -> None:
    assert TREE["sbin/init"] == Symlink("sbin/init", "/init")
    assert "linuxrc" not in TREE


def test_temporary_folders_are_for_everybody_and_sticky() -> None:
    for name in ("tmp", "var/tmp"):
        assert TREE[name] == Directory(name, mode=0o1777)


def test_root_has_an_account_a_home_and_a_shell() -> None:
    accounts = TREE["etc/passwd"]
    assert isinstance(accounts, File)
    assert accounts.data.splitlines()[0] == b"root:x:0:0:root:/root:/bin/sh"
    assert TREE["root"] == Directory("root", mode=0o700)


def test_the_tree_packs_into_the_same_bytes_each_time() -> None:
    def packed() -> bytes:
        return archive(rootfs(agent=b"a", busybox=b"b", applets=APPLETS))

    assert packed() == packed()
