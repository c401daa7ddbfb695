"""Files to and from a real guest, whose root has no tar: the agent does it all."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from microvm import Machine, MachineConfig
from microvm.abc import CopyReport, FileKind
from microvm.errors import GuestFileError, GuestFileNotFound

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

MIB = 1024 * 1024
Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


def make_tree(root: Path) -> None:
    (root / "deep/er").mkdir(parents=True)
    (root / "deep/er/data").write_bytes(os.urandom(2 * MIB + 1))
    (root / "run.sh").write_text("#!/bin/sh\necho from the host\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("run.sh")
    os.utime(root / "run.sh", ns=(1, 1_600_000_000_123_456_789))


async def test_a_tree_goes_in_works_there_and_comes_out_the_same(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    async with Machine() as machine:
        went = await machine.copy_in(tmp_path / "tree", "/root/tree")
        assert (await machine.run(["/root/tree/link"], check=True)).stdout == b"from the host\n"
        digest = await machine.run(["sha256sum", "/root/tree/deep/er/data"], check=True)
        came = await machine.copy_out("/root/tree", tmp_path / "back")
    assert went == came == CopyReport(entries=6, bytes=2 * MIB + 1 + 29)
    data = (tmp_path / "back/deep/er/data").read_bytes()
    assert hashlib.sha256(data).hexdigest().encode() == digest.stdout.split()[0]
    assert data == (tmp_path / "tree/deep/er/data").read_bytes()
    for name in ("run.sh", "link"):
        before, after = (tmp_path / "tree" / name).lstat(), (tmp_path / "back" / name).lstat()
        assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)


async def test_what_a_guest_keeps_in_its_own_places_is_read_and_written() -> None:
    async with Machine() as machine:
        files = machine.files
        assert "MemTotal" in await files.read_text("/proc/meminfo")
        await files.write_text("/proc/sys/kernel/hostname", "renamed\n")
        assert (await machine.run(["hostname"], check=True)).stdout == b"renamed\n"
        kinds = {it.name: it.kind for it in await files.list_dir("/dev")}
        assert (kinds["null"], kinds["fd"]) == (FileKind.OTHER, FileKind.SYMLINK)
        await files.mkdir("/srv/a/b", parents=True)
        await files.write_bytes("/srv/a/b/x", b"x", mode=0o600)
        assert (await files.stat("/srv/a/b/x")).mode == 0o600
        await files.remove("/srv", tree=True)
        with pytest.raises(GuestFileNotFound):
            await files.stat("/srv")


async def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3 * MIB))
    mount = "mkdir /small && mount -t tmpfs -o size=1m none /small"
    async with Machine() as machine:
        await machine.run(["sh", "-c", mount], check=True)
        with pytest.raises(GuestFileError, match="No space left in the guest") as caught:
            await machine.copy_in(tmp_path / "big", "/small/big")
        assert caught.value.errno == 28
        assert await machine.files.list_dir("/small") == ()
        with pytest.raises(GuestFileError, match="No space"):
            async with machine.files.open_write("/small/big") as stream:
                while True:
                    await stream.send_all(bytes(MIB))
        assert await machine.files.list_dir("/small") == ()


async def test_row_87_a_tree_made_to_lead_out_of_the_target_stays_in_it(tmp_path: Path) -> None:
    """Row 87, and 78: links, devices, pipes, set-user-id and names that are no names."""
    script = r"""
        mkdir -p /evil/dir && cd /evil
        ln -s / root; ln -s ../../.. up; ln -s "$1" host; ln -s dir again
        mknod disk b 8 0; mknod mem c 1 1; mkfifo pipe
        echo x > setuid; chmod 6777 setuid
        echo x > "$(printf 'new\nline')"; echo x > "$(printf '\033]0;title\007')"
        mkdir sticky; chmod 7000 sticky
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    async with Machine() as machine:
        await machine.run(["sh", "-c", script, "sh", str(outside)], check=True)
        report = await machine.copy_out("/evil", tmp_path / "out/../out")
    assert sorted(report.skipped) == ["disk", "mem", "pipe"]
    assert sorted(os.listdir(tmp_path)) == ["out", "outside"]
    assert os.listdir(outside) == []
    out = tmp_path / "out"
    assert os.readlink(out / "host") == str(outside)
    assert sorted(p.name for p in out.iterdir() if not p.is_symlink()) == sorted(
        ["dir", "new\nline", "setuid", "sticky", "\x1b]0;title\x07"]
    )
    for path in (out / "setuid", out / "sticky"):
        assert path.lstat().st_mode & 0o7022 == 0


async def test_several_copies_and_commands_go_on_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(MIB))

    async def there_and_back(machine: Machine, number: int) -> None:
        await machine.copy_in(tmp_path / "data", f"/tmp/{number}")
        await machine.copy_out(f"/tmp/{number}", tmp_path / str(number))

    async with Machine() as machine, trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(there_and_back, machine, number)
        assert (await machine.run(["echo", "x"])).stdout == b"x\n"
    whole = (tmp_path / "data").read_bytes()
    assert all((tmp_path / str(number)).read_bytes() == whole for number in range(8))


def test_run_copies_in_before_the_command_and_out_behind_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/numbers").write_text("2\n1\n")
    (tmp_path / "out").mkdir()
    done = cli(
        "run", "--copy-in", f"{tmp_path}/in:/work", "--copy-out", f"/work:{tmp_path}/work",
        "--copy-out", f"/work/sorted:{tmp_path}/out/sorted",
        "--", "sh", "-c", "mkfifo /work/pipe; sort /work/numbers > /work/sorted; exit 3",
    )  # fmt: skip
    assert done.returncode == 3
    assert (tmp_path / "work/sorted").read_text() == "1\n2\n"
    assert (tmp_path / "out/sorted").read_text() == "1\n2\n"
    assert b"not copied, no file or directory: pipe" in done.stderr
    failed = cli("run", "--copy-in", f"{tmp_path}/none:/x", "--", "true")
    assert failed.returncode == 125
    assert b"No such file" in failed.stderr


async def test_cp_copies_to_and_from_a_machine_with_a_name(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/x").write_text("x\n")

    async def cp(*words: str) -> "subprocess.CompletedProcess[bytes]":
        return await trio.to_thread.run_sync(lambda: cli("cp", *words))

    async with Machine(MachineConfig(name="copied")) as machine:
        await machine.wait_ready()
        done = await cp("--json", f"{tmp_path}/tree", "copied:/root/")
        assert (done.returncode, done.stderr) == (0, b"")
        assert json.loads(done.stdout) == {"entries": 2, "bytes": 2, "skipped": []}
        assert (await machine.run(["cat", "/root/tree/x"], check=True)).stdout == b"x\n"
        done = await cp("copied:/root/tree", f"{tmp_path}/back")
        assert (done.returncode, done.stdout) == (0, b"")
        assert (tmp_path / "back/x").read_text() == "x\n"
        refused = await cp("copied:/nowhere", f"{tmp_path}/nowhere")
        assert refused.returncode == 125
        assert b"No such file or directory" in refused.stderr
