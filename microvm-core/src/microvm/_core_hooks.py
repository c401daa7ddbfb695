"""Core's own implementations of hooks, registered through the same door as a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from microvm.plugins import hookimpl

if TYPE_CHECKING:
    from microvm.abc import ProbeReport


@hookimpl(trylast=True)
def microvm_select_backend(reports: Sequence[ProbeReport]) -> str | None:
    """The first usable one: reports come sorted by preference, then name."""
    return next((report.backend for report in reports if report.usable), None)
