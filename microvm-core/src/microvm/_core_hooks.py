"""Core's own implementations of hooks, registered through the same door as a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from microvm.plugins import hookimpl

if TYPE_CHECKING:
    from microvm.abc import ProbeReport
    from microvm.plugins import BootProtocol


@hookimpl(trylast=True)
def microvm_select_backend(reports: Sequence[ProbeReport]) -> str | None:
    """The first usable one: reports come sorted by preference, then name."""
    return next((report.backend for report in reports if report.usable), None)


@hookimpl(trylast=True)
def microvm_boot_protocol(head: bytes, arch: str) -> BootProtocol | None:
    """The kernels that core can boot by itself."""
    from microvm.boot.protocols import recognise

    return recognise(head, arch)
