"""ACPI tables byte by byte. That an ASL compiler reads them alike is on docs/boot.md."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.board import MAX_VCPU_COUNT, BoardDescription, VirtioSlot
from microvm.boot.x86 import aml
from microvm.boot.x86.acpi import acpi_tables
from microvm.boot.x86.placement import BOOT_STRUCTURES
from microvm.boot.x86.tables import RSDP, write_board_tables
from microvm.memory import GuestMemory

SLOTS = tuple(
    VirtioSlot(base=layout.virtio_mmio_base(index), gsi=gsi)
    for index, gsi in enumerate(layout.VIRTIO_GSIS)
)
SMALL = BoardDescription(vcpu_count=1, has_com1=False)
USUAL = BoardDescription(vcpu_count=2, virtio=SLOTS[:2])
LARGEST = BoardDescription(vcpu_count=MAX_VCPU_COUNT, virtio=SLOTS)
boards = pytest.mark.parametrize("board", [SMALL, USUAL, LARGEST], ids=["small", "usual", "most"])


class Reader:
    """Follows the pointers as a kernel does."""

    def __init__(self, board: BoardDescription) -> None:
        self.blob = acpi_tables(board)
        (self.xsdt_address,) = struct.unpack_from("<Q", self.blob, 24)
        xsdt = self.table(self.xsdt_address)
        self.addresses = struct.unpack(f"<{len(xsdt[36:]) // 8}Q", xsdt[36:])
        self.tables = {self.table(at)[:4]: self.table(at) for at in self.addresses}
        self.fadt, self.madt = self.tables[b"FACP"], self.tables[b"APIC"]
        (self.dsdt_address,) = struct.unpack_from("<Q", self.fadt, 140)
        self.dsdt = self.table(self.dsdt_address)

    def table(self, address: int) -> bytes:
        at = address - layout.ACPI_TABLES
        (length,) = struct.unpack_from("<I", self.blob, at + 4)
        assert at + length <= len(self.blob)
        return self.blob[at : at + length]


def register(table: bytes, at: int) -> tuple[int, ...]:
    return struct.unpack_from("<BBBBQ", table, at)


@boards
def test_the_rsdp_is_valid_by_both_its_checksums(board: BoardDescription) -> None:
    rsdp = Reader(board).blob[:36]
    assert rsdp[:8] == b"RSD PTR "
    assert rsdp[15] == 2
    assert struct.unpack_from("<II", rsdp, 16) == (0, 36)  # no RSDT
    assert sum(rsdp[:20]) % 256 == 0
    assert sum(rsdp) % 256 == 0


@boards
def test_every_table_is_whole_checked_and_aligned(board: BoardDescription) -> None:
    reader = Reader(board)
    addresses = [reader.xsdt_address, reader.dsdt_address, *reader.addresses]
    signatures = [reader.table(address)[:4] for address in addresses]
    assert signatures == [b"XSDT", b"DSDT", b"FACP", b"APIC"]
    for address in addresses:
        table = reader.table(address)
        assert sum(table) % 256 == 0
        assert table[10:16] == b"MICROV"
        assert address % 16 == 0
    spans = sorted((address, address + len(reader.table(address))) for address in addresses)
    assert spans[0][0] >= layout.ACPI_TABLES + 36
    for left, right in itertools.pairwise(spans):
        assert left[1] <= right[0]


@boards
def test_the_tables_fit_below_1_mib(board: BoardDescription) -> None:
    assert len(acpi_tables(board)) <= BOOT_STRUCTURES["ACPI tables"].length


def test_the_fadt_is_of_a_hardware_reduced_machine() -> None:
    fadt = Reader(USUAL).fadt
    assert len(fadt) == 276
    assert (fadt[8], fadt[131]) == (6, 5)
    (flags,) = struct.unpack_from("<I", fadt, 112)
    # HW_REDUCED_ACPI, RESET_REG_SUP, FIX_RTC, SLP_BUTTON, PWR_BUTTON, WBINVD
    assert flags == 1 << 20 | 1 << 10 | 1 << 6 | 1 << 5 | 1 << 4 | 1
    assert not any(fadt[36:109])  # no FACS, no fixed hardware
    assert not any(fadt[148:244])


def test_the_fadt_says_what_legacy_a_kernel_need_not_look_for() -> None:
    (boot_arch,) = struct.unpack_from("<H", Reader(USUAL).fadt, 109)
    assert not boot_arch & 1 << 1  # 8042
    assert boot_arch & 1 << 2  # VGA not present
    assert not boot_arch & 1 << 5  # "CMOS RTC not present": it is


def test_the_fadts_registers_are_the_three_ports() -> None:
    fadt = Reader(USUAL).fadt
    assert register(fadt, 244) == (1, 8, 0, 1, layout.ACPI_PM)
    assert register(fadt, 256) == (1, 8, 0, 1, layout.ACPI_PM + 1)
    assert register(fadt, 116) == (1, 8, 0, 1, layout.ACPI_PM + 2)
    assert fadt[128] == layout.ACPI_RESET_VALUE


@pytest.mark.parametrize("count", [1, 2, MAX_VCPU_COUNT])
def test_the_madt_has_the_io_apic_and_each_vcpu(count: int) -> None:
    madt = Reader(BoardDescription(vcpu_count=count)).madt
    assert struct.unpack_from("<II", madt, 36) == (layout.LOCAL_APIC, 0)
    assert struct.unpack_from("<BBBBII", madt, 44) == (1, 12, count, 0, layout.IO_APIC, 0)
    cpus = list(struct.iter_unpack("<BBBBI", madt[56:]))
    assert cpus == [(0, 8, index, index, 1) for index in range(count)]


def test_the_dsdt_has_a_device_for_each_slot() -> None:
    dsdt = Reader(USUAL).dsdt
    assert dsdt[8] == 2  # 64-bit integers
    for index, (name, base, gsi) in enumerate((("V000", 0xD000_0000, 5), ("V001", 0xD000_1000, 6))):
        resources = (
            b"\x86\x09\x00\x01" + struct.pack("<II", base, 0x1000)
            + b"\x89\x06\x00\x03\x01" + struct.pack("<I", gsi)
            + b"\x79\x00"
        )  # fmt: skip
        body = (
            name.encode()
            + b"\x08_HID\x0dLNRO0005\0"
            + b"\x08_UID" + bytes([index])
            + b"\x08_CCA\x01"
            + b"\x08_CRS\x11" + bytes([len(resources) + 3]) + b"\x0a" + bytes([len(resources)])
            + resources
        )  # fmt: skip
        length = len(body) + 2
        assert b"\x5b\x82" + bytes([0x40 | length & 0xF, length >> 4]) + body in dsdt


def test_the_serial_port_is_in_the_dsdt_if_it_is_on_the_board() -> None:
    port = b"COM1\x08_HID\x0c\x41\xd0\x05\x01\x08_UID\x01\x08_CRS"
    resources = b"\x47\x01\xf8\x03\xf8\x03\x01\x08\x89\x06\x00\x03\x01\x04\0\0\0\x79\0"
    assert port in Reader(USUAL).dsdt
    assert resources in Reader(USUAL).dsdt
    assert b"COM1" not in Reader(SMALL).dsdt


def test_the_clock_is_in_the_dsdt_without_an_interrupt() -> None:
    device = b"RTC_\x08_HID\x0c\x41\xd0\x0b\x00\x08_UID\x00\x08_CRS"
    resources = b"\x11\x0d\x0a\x0a\x47\x01\x70\x00\x70\x00\x01\x02\x79\0"
    assert device + resources in Reader(SMALL).dsdt


@boards
def test_s5_names_the_sleep_type_that_the_register_takes(board: BoardDescription) -> None:
    assert Reader(board).dsdt.endswith(b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\0\0")
    assert layout.ACPI_S5_SLP_TYP == 5


def test_the_board_writes_its_tables_and_nothing_else() -> None:
    memory = GuestMemory.anonymous(2 << 20)
    write_board_tables(memory, USUAL)
    assert memory.read(RSDP, 8) == b"RSD PTR "
    assert memory.read(layout.EBDA, 4) == b"_MP_"
    assert not any(memory.read(0, layout.EBDA))
    assert not any(memory.read(layout.EBDA_END, layout.ACPI_TABLES - layout.EBDA_END))
    assert not any(memory.read(layout.HIGH_MEMORY, 1 << 20))


# --- AML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (255, "0aff"),
        (256, "0b0001"),
        (0xFFFF, "0bffff"),
        (0x10000, "0c00000100"),
        (0xFFFF_FFFF, "0cffffffff"),
        (1 << 32, "0e0000000001000000"),
        ((1 << 64) - 1, "0effffffffffffffff"),
    ],
)
def test_an_integer_is_encoded_in_its_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_an_integer_has_at_most_64_bits() -> None:
    with pytest.raises(ValueError):
        aml.integer(1 << 64)


def package_length_of(data: bytes) -> tuple[int, int]:
    """ACPI 20.2.4 read backwards: the length, and how many bytes told it."""
    more = data[0] >> 6
    if not more:
        return data[0], 1
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + more], "little") << 4, 1 + more


@given(st.integers(0, (1 << 28) - 5))
def test_a_package_length_counts_itself(content: int) -> None:
    encoded = aml.package_length(content)
    assert package_length_of(encoded) == (content + len(encoded), len(encoded))


@pytest.mark.parametrize(
    ("content", "size"),
    [(0, 1), (62, 1), (63, 2), (4093, 2), (4094, 3), (0xF_FFFC, 3), (0xF_FFFD, 4)],
)
def test_a_package_length_takes_as_few_bytes_as_can_be(content: int, size: int) -> None:
    assert len(aml.package_length(content)) == size


def test_a_package_has_a_largest_length() -> None:
    aml.package_length((1 << 28) - 5)
    with pytest.raises(ValueError):
        aml.package_length((1 << 28) - 4)


@pytest.mark.parametrize(
    ("name", "encoded"), [("COM1", b"COM1"), ("_SB", b"_SB_"), ("\\_S5", b"\\_S5_")]
)
def test_a_name_is_padded_to_four_characters(name: str, encoded: bytes) -> None:
    assert aml.name_string(name) == encoded


@pytest.mark.parametrize("name", ["", "\\", "ABCDE"])
def test_a_name_of_no_or_many_segments_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        aml.name_string(name)


# --- the board ---------------------------------------------------------------------------------

ONE = SLOTS[0]


@pytest.mark.parametrize(
    ("count", "virtio", "reason"),
    [
        (0, (), "1 to 254 vCPUs, not 0"),
        (255, (), "1 to 254 vCPUs, not 255"),
        (1, (ONE, ONE._replace(gsi=6)), "have their registers at 0xd0000000"),
        (1, (ONE, ONE._replace(base=0xD000_1000)), "have interrupt 5"),
        (1, (ONE._replace(gsi=4),), "have interrupt 4"),
        (1, (ONE._replace(gsi=24),), "no pin 24"),
        (1, (ONE._replace(gsi=-1),), "no pin -1"),
        (1, (ONE._replace(base=0xD000_0800),), "can't lie at 0xd0000800"),
        (1, (ONE._replace(base=0x1000),), "can't lie at 0x1000"),
        (1, (ONE._replace(base=layout.IO_APIC),), "can't lie at 0xfec00000"),
    ],
)
def test_a_board_that_can_not_be_is_refused(
    count: int, virtio: tuple[VirtioSlot, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        BoardDescription(vcpu_count=count, virtio=virtio)
