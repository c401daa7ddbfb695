"""The programs of the initramfs are static and for the guest's machine."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.image.cache import open_cache
from microvm_guest.image.errors import BuildError
from microvm_guest.image.layout import CacheLayout
from microvm_guest.image.programs import compile_agent, find_busybox, is_static_elf
from microvm_guest.image.progress import Silent


def program(*kinds: int, machine: int = 62) -> bytes:
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(kinds), 0, 0, 0
    )
    return head + b"".join(struct.pack("<I", kind).ljust(56, b"\0") for kind in kinds)


def test_a_program_without_a_loader_is_static() -> None:
    assert is_static_elf(program(1, 1, 7), "x86_64")


def test_a_program_that_needs_a_loader_is_not() -> None:
    assert not is_static_elf(program(1, 3, 1), "x86_64")


def test_a_program_for_another_machine_is_not_for_this_guest() -> None:
    assert not is_static_elf(program(1, machine=183), "x86_64")


def test_a_program_cut_short_is_none() -> None:
    whole = program(1, 1)
    assert not any(is_static_elf(whole[:length], "x86_64") for length in range(len(whole)))


@given(st.binary(max_size=256) | st.binary(max_size=256).map(lambda b: b"\x7fELF\x02\x01" + b))
def test_any_bytes_are_answered(data: bytes) -> None:
    assert is_static_elf(data, "x86_64") in (True, False)


def test_the_agent_compiles_static_and_small(tmp_path: Path) -> None:
    agent, compiler = compile_agent(tmp_path, Silent())
    assert is_static_elf(agent, "x86_64")
    if compiler == "musl-gcc":
        assert len(agent) < 160 * 1024


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox-static")
def test_the_hosts_static_busybox_is_taken_with_all_its_applets(
    layout: CacheLayout, tmp_path: Path
) -> None:
    with open_cache(layout, lambda text: pytest.fail(text)) as cache:
        found = find_busybox(cache, tmp_path, "x86_64", Silent())
    assert is_static_elf(found.program, "x86_64")
    assert {"bin/sh", "bin/cat", "bin/uname"} <= set(found.applets)
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    assert {Path(name).name for name in found.applets} == set(listed.stdout.split())


def test_without_busybox_and_without_apt_the_program_to_install_is_named(
    layout: CacheLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(BuildError, match="no apt") as caught,
        open_cache(layout, lambda text: pytest.fail(text)) as cache,
    ):
        find_busybox(cache, tmp_path, "x86_64", Silent())
    assert "busybox-static" in str(caught.value.remedy)


def test_a_busybox_that_needs_a_loader_is_not_taken_from_path(
    layout: CacheLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busybox").write_bytes(program(1, 3, 1))
    (tmp_path / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(BuildError, match="no static busybox"),
        open_cache(layout, lambda text: pytest.fail(text)) as cache,
    ):
        find_busybox(cache, tmp_path, "x86_64", Silent())
