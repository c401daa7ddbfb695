"""A machine with a control socket, for all tests of this folder."""

from functools import partial
from pathlib import Path

import pytest

from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import scripted_machine

from .control_clients import NAME, Build


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's sockets are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "microvm"


@pytest.fixture
def machine_of(place: Path, tmp_path: Path) -> Build:
    return partial(scripted_machine, tiny_kernel(tmp_path / "kernel"), name=NAME)
