"""Tests that need a KVM which boots unmodified Linux: the lab's, or the host's own where it can.

`nox -s lab` runs them in the lab, `nox -s kvm` on the host.
"""

import functools
import importlib
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@functools.cache
def why_not() -> str | None:
    """Why the KVM here boots no Linux; None where it does.

    In the lab there is no asking: a probe that says no there is a failure to be seen.
    """
    if os.environ.get("MICROVM_LAB"):
        return None
    try:
        plugin = importlib.import_module("microvm_kvm.plugin")
    except ImportError:
        return "microvm-kvm is not installed"
    report = plugin.probe({})
    return None if report.usable else report.reason


def kvm_boots_linux() -> bool:
    """Whether we are in the lab, or on a host whose KVM the backend's probe finds fit for Linux."""
    return why_not() is None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, and skip it where it can't run."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.lab)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip where there is no such KVM; asked only once a test is about to run."""
    if not kvm_boots_linux():
        pytest.skip(f"run by nox -s lab: {why_not()}")
