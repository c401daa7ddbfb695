"""Guest memory, and the one way into it.

Every guest physical address that anything on the host follows goes through `GuestMemory.slice`:
a view comes out only if the whole range lies in one region. Addresses and lengths are Python
integers, so a sum can't wrap; they may still come from the guest and be any value of 64 bits.

What lies behind a view is shared with running vCPUs and changes at any moment. A value that is
checked must be copied first, and only the copy used.

Ring indexes want single-copy atomicity: `load_u16` and `store_u16`, and casts to ``"H"`` made of
an aligned slice, are one aligned access of two bytes. CPython's memoryview packs and unpacks a
native ``H`` by `memcpy` of a constant size of 2, which compilers turn into one load or store on
every architecture that has hypervisors (seen in 3.11.7, 3.12.1 and 3.13.0 for x86-64: ``movzwl``
in `memory_item`, a ``mov`` of 16 bits in `pack_single`). They use the host's byte order, and
virtio is little-endian (virtio 1.2, 1.4 Structure Specifications), so a big-endian host is
refused.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from collections.abc import Callable, Iterable

import attrs

from microvm.errors import BackendError, GuestMemoryError

REGION_ALIGNMENT = 16
"""Regions begin at multiples of this, so that what is aligned for the guest is aligned for us."""

_ADDRESS_SPACE = 1 << 64

_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Guests rarely touch all that they are given. Python's mmap has the name from 3.13 on."""


Reclaim = Callable[[int, int], int]
"""From an offset in the region, this many bytes: what was given back of them."""


def page_reclaim(mapping: mmap.mmap, *, shared: bool, skip: int = 0, page: int = 0) -> Reclaim:
    """How to give pages of a mapping back to the host; they read as zeros from then on.

    Args:
        mapping: Anonymous memory, or a file of a memory file system (memfd) mapped shared: there
            the pages leave the file too, and so everybody who maps it.
        shared: Which of the two.
        skip: Where in the mapping the region begins.
        page: The size of its pages, where that is not the host's usual one.
    """
    page = max(page, mmap.PAGESIZE)
    # madvise(2): of a private mapping DONTNEED drops the pages; of a shared one only the page
    # tables, and REMOVE punches a hole.
    advice = getattr(mmap, "MADV_REMOVE" if shared else "MADV_DONTNEED", None)

    def reclaim(offset: int, length: int) -> int:
        begin = -(-(skip + offset) // page) * page
        whole = (skip + offset + length) // page * page - begin
        if advice is None or whole <= 0:
            return 0
        try:
            mapping.madvise(advice, begin, whole)
        except OSError:
            return 0  # it is sealed, or locked, or no file that can have holes
        return whole

    return reclaim


@attrs.frozen(kw_only=True, eq=False)
class GuestRegion:
    """A run of guest RAM.

    `view` must begin at a host address that is a multiple of `REGION_ALIGNMENT` (an mmap does).
    """

    start: int
    """Guest physical address of the first byte."""
    view: memoryview
    """Its bytes: format ``B``, one dimension, writable."""
    reclaim: Reclaim | None = None
    """Gives whole pages back to the host, where that can be done; see `page_reclaim`."""

    def __attrs_post_init__(self) -> None:
        view = self.view
        if view.format != "B" or view.ndim != 1 or view.readonly or not view.contiguous:
            raise ValueError("A guest region's view must be writable, contiguous bytes.")
        if not len(view):
            raise ValueError("A guest region holds at least one byte.")
        if self.start < 0 or self.end > _ADDRESS_SPACE:
            raise ValueError(f"A guest region at {self.start:#x} leaves the address space.")
        if self.start % REGION_ALIGNMENT:
            raise ValueError(
                f"A guest region at {self.start:#x} is not aligned to {REGION_ALIGNMENT} bytes."
            )

    @property
    def end(self) -> int:
        """The guest physical address behind the last byte."""
        return self.start + len(self.view)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


class GuestMemory:
    """All of a guest's RAM.

    Args:
        regions: In any order; they must not overlap.

    Raises:
        ValueError: regions overlap, or there are none.
        BackendError: the host is big-endian.
    """

    def __init__(self, regions: Iterable[GuestRegion]) -> None:
        if sys.byteorder != "little":
            raise BackendError(
                "This host is big-endian, and guest memory is shared with little-endian devices.",
                remedy="Run on x86-64 or 64-bit Arm.",
            )
        self._regions = tuple(sorted(regions, key=lambda region: region.start))
        if not self._regions:
            raise ValueError("Guest memory needs at least one region.")
        for left, right in itertools.pairwise(self._regions):
            if left.end > right.start:
                raise ValueError(f"Guest regions overlap at {right.start:#x}.")
        self._spans = tuple((region.start, region.end, region.view) for region in self._regions)

    @classmethod
    def anonymous(cls, size: int, start: int = 0) -> GuestMemory:
        """One region of zeros that the host gives pages to as they are touched.

        It is kept out of core dumps and of forked children.

        Args:
            size: Bytes.
            start: Guest physical address of the first.

        Raises:
            BackendError: the host has no memory left for it.
        """
        return cls.for_ranges([(start, size)])

    @classmethod
    def for_ranges(cls, ranges: Iterable[tuple[int, int]]) -> GuestMemory:
        """One such region for each start and size, as a machine with a hole in its memory has.

        Raises:
            BackendError: the host has no memory left for them.
        """
        mappings = [(start, _anonymous(size)) for start, size in ranges]
        return cls(
            GuestRegion(
                start=start,
                view=memoryview(mapping),
                # Elsewhere than on Linux the same advice leaves the bytes as they are.
                reclaim=page_reclaim(mapping, shared=False) if sys.platform == "linux" else None,
            )
            for start, mapping in mappings
        )

    @property
    def regions(self) -> tuple[GuestRegion, ...]:
        """The regions by ascending address."""
        return self._regions

    def slice(self, address: int, length: int) -> memoryview:
        """The bytes at `address`, shared with the guest.

        Raises:
            GuestMemoryError: they are not wholly in one region.
        """
        view = self.whole(address, length) if length >= 0 else None
        if view is None:
            raise GuestMemoryError(f"The guest has no {length} bytes of memory at {address:#x}.")
        return view

    def whole(self, address: int, length: int) -> memoryview | None:
        """The same, or None if they are not; `length` is not below 0."""
        stop = address + length
        for start, end, view in self._spans:
            if start <= address and stop <= end:
                return view[address - start : stop - start]
        return None

    def region_at(self, address: int, length: int) -> tuple[int, int, memoryview]:
        """The region where a range begins: its start, its end, its bytes.

        For who slices many ranges one after the other. Whether the range ends in it is for the
        caller to see; if not, `slices` knows.

        Raises:
            GuestMemoryError: there is none.
        """
        for span in self._spans:
            if span[0] <= address < span[1]:
                return span
        raise GuestMemoryError(f"The guest has no {length} bytes of memory at {address:#x}.")

    def slices(self, address: int, length: int) -> list[memoryview]:
        """The bytes at `address` where they may run on from one region into the next.

        Raises:
            GuestMemoryError: some of them are not RAM.
        """
        pieces: list[memoryview] = []
        position, left = address, length
        for start, end, view in self._spans:
            if start <= position < end and left > 0:
                offset = position - start
                piece = view[offset : offset + left]
                pieces.append(piece)
                position += len(piece)
                left -= len(piece)
        if left:
            raise GuestMemoryError(f"The guest has no {length} bytes of memory at {address:#x}.")
        return pieces

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out.

        Raises:
            GuestMemoryError: as `slice`.
        """
        return bytes(self.slice(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in.

        Raises:
            GuestMemoryError: as `slice`; nothing was written.
        """
        self.slice(address, len(data))[:] = data

    def load_u16(self, address: int) -> int:
        """One load of two aligned bytes.

        Raises:
            GuestMemoryError: as `slice`.
            ValueError: the address is odd.
        """
        return self._cell(address)[0]

    def store_u16(self, address: int, value: int) -> None:
        """One store of two aligned bytes.

        Raises:
            GuestMemoryError: as `slice`.
            ValueError: the address is odd, or the value has more than 16 bits.
        """
        self._cell(address)[0] = value

    def _cell(self, address: int) -> memoryview[int]:
        if address & 1:
            raise ValueError(f"{address:#x} is not aligned to two bytes.")
        return self.slice(address, 2).cast("H")

    def address_of(self, view: memoryview) -> int:
        """The guest physical address of what `slice` or `slices` gave out, or of a part of it.

        Raises:
            ValueError: it is no view of this memory.
        """
        where = _host_address(view)
        for region in self._regions:
            offset = where - _host_address(region.view)
            if offset >= 0 and offset + len(view) <= len(region.view):
                return region.start + offset
        raise ValueError("That is no view of this guest's memory.")

    def discard(self, address: int, length: int) -> int:
        """Give the whole pages within a range back to the host.

        They are the guest's still, and read as zeros from then on.

        Returns:
            Bytes given back; less than `length` where pages lie in it in part, or where the host
            can't take memory back.

        Raises:
            GuestMemoryError: some of it is not RAM; nothing was given back.
        """
        for piece in self.slices(address, length):
            piece.release()
        done = 0
        for region in self._regions:
            begin = max(address, region.start)
            end = min(address + length, region.end)
            if region.reclaim is not None and begin < end:
                done += region.reclaim(begin - region.start, end - begin)
        return done

    def release(self) -> None:
        """Give up every region: each later access raises `GuestMemoryError`.

        Slices that were given out keep their bytes, and their mapping, until they are dropped.
        """
        self._spans = ()
        for region in self._regions:
            region.view.release()


def _host_address(view: memoryview) -> int:
    import ctypes

    # SAFETY: the address is compared with others, and never followed.
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def host_mem_mib() -> int:
    """The host's memory, all of it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def _anonymous(size: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        mapping = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise BackendError(
            f"The host can't give {size} bytes of guest memory: {error.strerror}.",
            remedy="Make mem_size_mib smaller, or raise the limit on memory.",
        ) from error
    keep_private(mapping)
    return mapping


def keep_private(mapping: mmap.mmap) -> None:
    """Keep a mapping of guest RAM out of forked children and core dumps, where the host can."""
    for name in ("MADV_DONTFORK", "MADV_DONTDUMP"):
        advice = getattr(mmap, name, None)
        if advice is not None:
            mapping.madvise(advice)
