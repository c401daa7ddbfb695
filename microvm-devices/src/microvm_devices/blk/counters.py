"""What the block device counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from microvm_devices.blk.layout import S_OK, T_FLUSH, T_IN, T_OUT

if TYPE_CHECKING:
    from microvm_devices.blk.request import Request


@attrs.define(eq=False)
class BlkCounters:
    """Since the device was made. For the trio thread."""

    requests: int = 0
    """Answered ones, of every kind and outcome."""
    read_bytes: int = 0
    written_bytes: int = 0
    """As the guest sees them: of requests that succeeded."""
    flushes: int = 0
    errors: int = 0
    """Requests that were answered with an I/O error, or as unsupported."""
    throttled: int = 0
    """How often the rate limit made a queue wait."""
    handed_over: int = 0
    """Batches that went to a thread, since they might have to wait for the host's disk."""

    def count(self, request: Request) -> None:
        """Count a request that is answered."""
        self.requests += 1
        if request.status != S_OK:
            self.errors += 1
        elif request.type == T_IN:
            self.read_bytes += request.length
        elif request.type == T_OUT:
            self.written_bytes += request.length
        elif request.type == T_FLUSH:
            self.flushes += 1

    def as_mapping(self) -> Mapping[str, int]:
        """All, by name."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
