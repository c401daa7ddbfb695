"""Mapping the guest's RAM from the descriptors of SET_MEM_TABLE."""

from __future__ import annotations

import gc
import logging
import mmap
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from microvm.errors import BackendError
from microvm.memory import GuestMemory, GuestRegion, keep_private, page_reclaim

if TYPE_CHECKING:
    from microvm.virtio.vhost_user.message import MemoryRegion
    from microvm.virtio.vhost_user.plan import Handle

logger = logging.getLogger(__name__)


class MappedMemory:
    """The guest's RAM, mapped shared, until `close`.

    The descriptors are closed in any case. (`mmap` holds a duplicate while a mapping lives.)

    Raises:
        BackendError: a region is not in its file, can't be mapped, or the regions don't fit
            together. Nothing stays mapped.
    """

    def __init__(self, regions: Sequence[MemoryRegion], fds: Sequence[Handle]) -> None:
        self._mappings: list[mmap.mmap] = []
        views: list[GuestRegion] = []
        try:
            for region, fd in zip(regions, fds, strict=True):
                views.append(self._map(region, fd))
            self.memory = GuestMemory(views)
        except (OSError, ValueError, OverflowError) as error:
            for view in views:
                view.view.release()
            self._unmap()
            raise BackendError(
                f"The vhost-user front end's memory can't be mapped: {error}."
            ) from error
        finally:
            for fd in fds:
                fd.close()

    def _map(self, region: MemoryRegion, fd: Handle) -> GuestRegion:
        status = os.fstat(fd.fileno())
        end = region.mmap_offset + region.size
        # A page behind the end of the file would answer with SIGBUS.
        if not region.size or end > status.st_size:
            raise ValueError(
                f"{region.size} bytes at {region.mmap_offset} of a file of {status.st_size}"
            )
        # Huge page files are mapped in whole pages of theirs, which st_blksize tells.
        page = max(mmap.ALLOCATIONGRANULARITY, status.st_blksize)
        begin = region.mmap_offset - region.mmap_offset % page
        length = min(-(-end // page) * page, status.st_size) - begin
        mapping = mmap.mmap(fd.fileno(), length, flags=mmap.MAP_SHARED, offset=begin)
        self._mappings.append(mapping)
        keep_private(mapping)
        skip = region.mmap_offset - begin
        with memoryview(mapping) as whole:
            view = whole[skip : skip + region.size]
        try:
            return GuestRegion(
                start=region.guest_address,
                view=view,
                reclaim=page_reclaim(mapping, shared=True, skip=skip, page=page),
            )
        except ValueError:
            view.release()
            raise

    def close(self) -> None:
        """Unmap. The device's `run` must have returned: what it still reads would be gone.

        A view that a device has kept keeps its mapping until the view is dropped; that is
        logged, since guest memory is not given back meanwhile. It is not logged while an error
        is on its way out: its traceback holds the views, and drops them where it is handled.
        """
        self.memory.release()
        self._unmap()

    def _unmap(self) -> None:
        for mapping in self._mappings:
            if _close(mapping):
                continue
            # Views in cycles of garbage (tracebacks, as a rule) are not kept by anybody.
            gc.collect()
            if not _close(mapping) and sys.exception() is None:
                logger.warning("A device kept views of guest memory beyond its run.")
        self._mappings.clear()


def _close(mapping: mmap.mmap) -> bool:
    try:
        mapping.close()
    except BufferError:
        return False
    return True
