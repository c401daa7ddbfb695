"""Core's own boot protocols come by the door that is open to all, and last."""

import struct
from pathlib import Path

import pytest

from microvm.boot.files import kernel_head
from microvm.errors import ImageError
from microvm.plugins import BootProtocol, hookimpl
from microvm.testing.boot_files import bzimage, elf, note
from microvm.testing.plugins import plugin_manager

FLAT = BootProtocol(name="flat", summary="A flat image", load=lambda plan, memory: {})


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (elf(), "elf"),
        (elf(notes=note(b"GNU\0", 3, bytes(20))), "elf"),
        (bzimage(), "bzimage"),
        (bzimage(xloadflags=0), "bzimage"),  # its own refusal says more than "unknown"
    ],
)
def test_x86_64_kernels_are_recognised(kernel: bytes, name: str) -> None:
    found = plugin_manager().boot_protocol(kernel[:4096], "x86_64")
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    ("head", "arch"),
    [
        (elf(), "aarch64"),
        (bzimage(), "aarch64"),
        (elf(machine=183), "x86_64"),
        (elf(ident=b"\x7fELF\x01\x01\x01"), "x86_64"),
        (elf(ident=b"\x7fELF\x02\x02\x01"), "x86_64"),
        (elf()[:63], "x86_64"),
        (bzimage()[:0x205], "x86_64"),
        (b"", "x86_64"),
        (struct.pack("<I", 0x07070100) * 1024, "x86_64"),
    ],
)
def test_what_core_can_not_boot_is_left_to_others(head: bytes, arch: str) -> None:
    assert plugin_manager().boot_protocol(head, arch) is None


def test_a_plugin_comes_before_core() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def microvm_boot_protocol() -> BootProtocol:
            return FLAT

    plugins = plugin_manager(plugins={"device/flat": Plugin})
    assert plugins.boot_protocol(elf(), "x86_64") is FLAT


def test_the_head_of_a_kernel_is_its_first_4096_bytes(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(elf())
    assert kernel_head(tmp_path / "kernel") == elf()[:4096]
    (tmp_path / "short").write_bytes(b"x")
    assert kernel_head(tmp_path / "short") == b"x"
    with pytest.raises(ImageError, match=r"The kernel .* no such file"):
        kernel_head(tmp_path / "nothing")
