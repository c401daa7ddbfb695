"""A guest's memory and who loads kernels into it."""

from pathlib import Path

import pytest

from microvm.memory import GuestMemory

from .kernel_loader import MIB, Loader


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.anonymous(64 * MIB)


@pytest.fixture
def loader(tmp_path: Path, memory: GuestMemory) -> Loader:
    return Loader(tmp_path, memory)
