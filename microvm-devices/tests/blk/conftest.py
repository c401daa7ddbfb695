"""An image on the host that is full of bytes."""

import os
from pathlib import Path

import pytest

from .raw_disks import SIZE


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path
