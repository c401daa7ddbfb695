"""What the tests of microvm.sync share."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load_rig():
    """rig.py as a module."""
    spec = importlib.util.spec_from_file_location("sync_rig", HERE / "rig.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sync_rig"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rig(tmp_path):
    return load_rig().Rig(tmp_path)


@pytest.fixture
def on_loop():
    return load_rig().on_loop
