"""Finding a QEMU: with real programs on a PATH of the test's own, some of them no QEMU."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from microvm.errors import BackendUnavailable
from microvm.testing.census import Census
from microvm_qemu import _probe, plugin
from microvm_qemu._options import QemuOptions
from microvm_qemu._probe import find, probe

GOOD = """\
case "$*" in
*-version*) echo "QEMU emulator version ${V:-7.2.1}" ;;
*-machine*) printf 'Supported machines are:\\n%s  x\\n' "${M:-microvm}" ;;
*-object*) printf 'List:\\n  %s\\n' "${O:-memory-backend-memfd}" ;;
*-device*) printf 'name "%s", bus virtio-bus\\n' "${D:-vhost-user-vsock-device}" vhost-user-rng ;;
*-accel*) printf 'Accelerators:\\n%s\\n' "${A:-tcg}" ;;
esac
"""

Script = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH, and a cache of the test's own."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("MICROVM_CACHE_DIR", str(tmp_path / "cache"))
    _probe._look.cache_clear()
    return bin_folder


@pytest.fixture
def qemu(place: Path) -> Script:
    """Put a shell script on the PATH in QEMU's place. It notes each call in ``calls``."""

    def write(body: str = GOOD, name: str = "qemu-system-x86_64") -> Path:
        path = place / name
        path.write_text(f"#!/bin/sh\necho call >> {place}/calls\n{body}")
        path.chmod(0o755)
        return path

    return write


def calls(place: Path) -> int:
    file = place / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def forget() -> None:
    """As a new process would: only the file is left."""
    _probe._look.cache_clear()


def test_a_good_qemu_is_usable_and_described(qemu: Script) -> None:
    program = qemu()
    report = probe({})
    assert report.usable
    assert not report.accelerated
    assert "7.2.1" in report.reason
    assert report.details["program"] == str(program)


def test_without_qemu_the_package_to_install_is_named(place: Path) -> None:
    report = probe({})
    assert not report.usable
    assert "PATH" in report.reason
    assert "apt-get install qemu-system-x86" in (report.remedy or "")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("V", "6.2.0", "older than 7.2"),
        ("M", "pc", "machine type 'microvm'"),
        ("O", "memory-backend-ram", "memory-backend-memfd"),
        ("D", "vhost-user-blk", "vhost-user-vsock-device"),
        ("A", "qtest", "accelerator 'tcg'"),
    ],
)
def test_a_qemu_that_lacks_something_is_told_by_what_it_lacks(
    qemu: Script, variable: str, value: str, words: str
) -> None:
    qemu(f"{variable}={value}\n{GOOD}")
    report = probe({})
    assert not report.usable
    assert words in report.reason
    assert report.remedy


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo hello", "does not tell a QEMU's version; it said 'hello'"),
        ("exit 3", "does not tell a QEMU's version"),
        ("printf '\\033]0;x\\007'", r"\\x1b]0;x\\x07"),
        ("kill -9 $$", "does not tell a QEMU's version"),
        ("echo error while loading shared libraries: libfoo.so.1 >&2; exit 127", "libfoo.so.1"),
        ("head -c 100000 /dev/zero", "does not tell"),
    ],
)
def test_a_program_that_is_no_qemu_is_told_with_what_it_said(
    qemu: Script, place: Path, body: str, words: str
) -> None:
    (place / "head").symlink_to("/usr/bin/head")
    qemu(body)
    report = probe({})
    assert not report.usable
    assert words in report.reason
    assert report.remedy


def test_a_qemu_that_prints_without_end_is_stopped(qemu: Script) -> None:
    qemu("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done")
    before = Census.take()
    report = probe({})
    assert "without end" in report.reason
    assert Census.take() == before


@pytest.mark.slow
def test_a_qemu_that_hangs_is_given_up_with_its_children(qemu: Script, tmp_path: Path) -> None:
    (tmp_path / "alive").mkdir()
    qemu(f"(echo $$ > {tmp_path}/alive/$$; /bin/sleep 1000) & wait")
    before = Census.take()
    report = probe({})
    assert "did not answer" in report.reason
    assert Census.take() == before
    assert not [pid for pid in os.listdir(tmp_path / "alive") if os.path.exists(f"/proc/{pid}")]


def test_a_file_that_is_no_program_is_named(place: Path) -> None:
    file = place / "qemu-system-x86_64"
    file.write_bytes(b"\x7fELF nonsense")
    file.chmod(0o755)
    report = probe({})
    assert not report.usable
    assert "can't be run" in report.reason
    assert str(file) in report.reason


@pytest.mark.parametrize(("kind", "words"), [("none", "does not exist"), ("dir", "executable")])
def test_a_program_given_by_path_must_be_one(place: Path, kind: str, words: str) -> None:
    path = place / kind
    if kind == "dir":
        path.mkdir()
    report = probe({"program": str(path)})
    assert not report.usable
    assert words in report.reason
    assert str(path) in report.reason


def test_a_program_given_by_path_is_the_one_used(qemu: Script) -> None:
    qemu("exit 1")
    other = qemu(GOOD, name="my qemu,x")
    assert find(QemuOptions(program=str(other))).program == str(other)


def test_wrong_options_are_left_to_create(qemu: Script) -> None:
    qemu()
    assert probe({"accel": 7, "foo": 1}).usable


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="no /dev/kvm")
def test_kvm_is_reported_as_accelerated_or_refused_with_a_remedy(qemu: Script) -> None:
    qemu(f"A=kvm\n{GOOD}")
    report = probe({"accel": "kvm"})
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert report.usable
        assert report.accelerated
    else:
        assert "/dev/kvm" in report.reason


def test_kvm_without_its_device_is_refused_with_a_remedy(tmp_path: Path) -> None:
    found = _probe.kvm_obstacle(str(tmp_path / "kvm"))
    assert found is not None
    assert "there is no" in found.reason
    assert "leave accel away" in found.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every file")
def test_kvm_that_is_not_ours_is_refused_with_a_remedy(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0o400)
    found = _probe.kvm_obstacle(str(device))
    assert found is not None
    assert "not yours" in found.reason


def test_kvm_that_is_ours_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    assert _probe.kvm_obstacle(str(tmp_path / "kvm")) is None


# --- remembering -----------------------------------------------------------------------------


def test_the_second_time_no_program_is_run(qemu: Script, place: Path) -> None:
    qemu()
    assert probe({}).usable
    asked = calls(place)
    assert asked > 0
    forget()
    assert probe({}).usable
    assert calls(place) == asked


def test_a_qemu_that_was_replaced_is_asked_again(qemu: Script) -> None:
    path = qemu()
    assert probe({}).usable
    forget()
    qemu(f"V=6.0.0\n{GOOD}")
    os.utime(path, ns=(1, 1))
    assert not probe({}).usable


def test_what_failed_is_asked_again(qemu: Script) -> None:
    path = qemu("exit 1")
    stamp = path.stat().st_mtime_ns
    assert not probe({}).usable
    path.write_text("#!/bin/sh\n" + GOOD)
    os.utime(path, ns=(stamp, stamp))
    assert probe({}).usable


def test_a_spoilt_cache_costs_only_the_asking(qemu: Script, tmp_path: Path) -> None:
    qemu()
    first = probe({})
    file = tmp_path / "cache" / "programs.json"
    content = json.loads(file.read_text())
    for spoilt in ("", "garbage", json.dumps({**content, "programs": {"x": 1}})):
        file.write_text(spoilt)
        forget()
        assert probe({}) == first


def test_a_cache_with_wrong_facts_in_it_costs_only_the_asking(qemu: Script, tmp_path: Path) -> None:
    qemu()
    first = probe({})
    file = tmp_path / "cache" / "programs.json"
    content = json.loads(file.read_text())
    for entry in content["programs"].values():
        entry["facts"] = {"version": "seven"}
    file.write_text(json.dumps(content))
    forget()
    assert probe({}) == first


def test_without_a_place_for_the_cache_it_still_asks_once_a_process(
    qemu: Script, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROVM_CACHE_DIR", "/proc/none")
    qemu()
    assert probe({}).usable
    asked = calls(place)
    plugin.create({})
    assert calls(place) == asked


def test_setpriv_is_used_only_if_it_knows_the_death_signal(qemu: Script) -> None:
    qemu()
    assert find(QemuOptions()).setpriv is None
    qemu("echo ' --pdeathsig keep|clear|<signame>'", name="setpriv")
    assert find(QemuOptions()).setpriv is not None
    qemu("echo busybox", name="setpriv")
    forget()
    assert find(QemuOptions()).setpriv is None


def test_on_another_system_the_reason_is_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    report = probe({})
    assert not report.usable
    assert "Linux" in report.reason


def test_create_raises_what_the_probe_reports(place: Path) -> None:
    with pytest.raises(BackendUnavailable, match="PATH"):
        plugin.create({})


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_the_systems_qemu_is_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROVM_CACHE_DIR", str(tmp_path))
    forget()
    report = probe({})
    assert report.usable, report.reason
    forget()
    assert probe({}) == report


def test_a_host_of_another_memory_order_is_refused(
    qemu: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our devices share rings with the guest: `microvm.virtio.fence`."""
    qemu()
    monkeypatch.setattr(_probe, "TOTAL_STORE_ORDER", False)
    with pytest.raises(BackendUnavailable, match="order"):
        find(QemuOptions())
