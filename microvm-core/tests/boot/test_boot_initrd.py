"""The initrd and the command line: where they lie, how long they may be, and which are refused."""

import pytest

from microvm.arch.x86_64 import layout
from microvm.boot import protocols
from microvm.errors import ConfigError, ImageError
from microvm.testing.boot_files import bzimage, elf

from .kernel_loader import INITRD, MIB, Loader


def test_the_initrd_lies_page_aligned_at_the_end_of_memory(loader: Loader) -> None:
    loader.load(bzimage())
    start = loader.u32(layout.ZERO_PAGE + 0x218)
    assert start % 0x1000 == 0
    assert 64 * MIB - 0x1000 < start + len(INITRD) <= 64 * MIB


def test_the_initrd_ends_where_the_kernel_can_reach(loader: Loader) -> None:
    loader.load(bzimage(initrd_addr_max=0x2FF_FFFF))
    end = loader.u32(layout.ZERO_PAGE + 0x218) + len(INITRD)
    assert 48 * MIB - 0x1000 < end <= 48 * MIB


@pytest.mark.parametrize("kernel", [bzimage(), elf()], ids=["bzimage", "elf"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (bytes(48 * MIB), "its 48 MiB don't fit beside the kernel")],
    ids=["empty", "large"],
)
def test_an_initrd_that_can_not_be_loaded_is_refused_by_name(
    loader: Loader, kernel: bytes, content: bytes, reason: str
) -> None:
    """Row 75."""
    message = loader.refusal(kernel, initrd=content)
    assert f"The initrd {loader.initrd} can't be used: {reason}" in message


def test_an_initrd_out_of_the_kernels_reach_is_refused(loader: Loader) -> None:
    """Row 75."""
    assert "don't fit" in loader.refusal(bzimage(initrd_addr_max=0xF_FFFF))
    assert "don't fit" in loader.refusal(bzimage(initrd_addr_max=0))


def test_a_missing_initrd_is_refused(loader: Loader) -> None:
    loader.kernel.write_bytes(bzimage())
    loader.initrd.touch()
    plan = loader.plan()
    loader.initrd.unlink()
    with pytest.raises(ImageError, match=r"initrd .* no such file"):
        protocols.BZIMAGE.load(plan, loader.memory)


@pytest.mark.parametrize(
    ("kernel", "limit"),
    [(bzimage(cmdline_size=255), 255), (bzimage(cmdline_size=2**32 - 1), 2047), (elf(), 2047)],
)
def test_a_command_line_is_as_long_as_the_kernel_takes_and_no_longer(
    loader: Loader, kernel: bytes, limit: int
) -> None:
    """Row 70."""
    loader.load(kernel, cmdline="a" * limit)
    assert loader.memory.read(layout.CMDLINE, limit + 1) == b"a" * limit + b"\0"
    message = loader.refusal(kernel, cmdline="a" * (limit + 1))
    assert f"a command line of {limit} bytes, and this machine's has {limit + 1}" in message


@pytest.mark.parametrize("line", ["a\0b", "a\nb", "a\tb", "ä", "a\x7f"])
def test_a_command_line_that_is_no_line_of_ascii_is_refused(loader: Loader, line: str) -> None:
    """Row 70."""
    with pytest.raises(ConfigError, match="one line of printable ASCII"):
        loader.load(bzimage(), cmdline=line)
