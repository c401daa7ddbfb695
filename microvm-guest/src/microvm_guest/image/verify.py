"""Comparing what lies in the cache with what its manifests say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microvm_guest.image.cache import facts_of


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the files of an image or kernel; reads every byte.

    Returns:
        One sentence for each file that is not as listed; empty when all is well.
    """
    wrong = []
    for name, facts in sorted(files.items()):
        try:
            found = facts_of(folder / name)
        except OSError as error:
            wrong.append(f"{name} can't be read: {error.strerror}.")
            continue
        if found != {"size": facts.get("size"), "sha256": facts.get("sha256")}:
            wrong.append(f"{name} is not what was built: its SHA-256 is {found['sha256']}.")
    return wrong
