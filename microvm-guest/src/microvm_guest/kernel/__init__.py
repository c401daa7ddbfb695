"""The guest kernel's configuration: fragments as data, and how they are merged and checked.

``base.config`` holds what every architecture wants, ``<arch>.config`` the rest. A new
architecture is a new fragment and a line in `architectures.ARCHITECTURES`.
"""

from __future__ import annotations

from pathlib import Path


def fragment_paths(arch: str) -> tuple[Path, ...]:
    """The configuration fragments of an architecture, in the order in which they are merged."""
    folder = Path(__file__).parent
    return (folder / "base.config", folder / f"{arch}.config")
