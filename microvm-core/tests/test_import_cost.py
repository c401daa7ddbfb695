"""`import microvm` is free: nothing heavy comes with it, in a fresh interpreter."""

import json
import subprocess
import sys

import pytest

HEAVY = {"trio", "pluggy", "importlib_metadata", "importlib.metadata", "cffi", "attr", "attrs"}


def imported_by(code):
    """The modules that a fresh interpreter has loaded after `code`, beyond its own start."""
    program = (
        "import sys; before = set(sys.modules)\n"
        f"{code}\n"
        "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy(modules):
    return HEAVY & {*modules, *(module.partition(".")[0] for module in modules)}


@pytest.mark.parametrize("code", ["import microvm", "import microvm; microvm.__version__"])
def test_importing_microvm_imports_nothing_heavy(code):
    modules = imported_by(code)
    assert heavy(modules) == set()
    assert {module for module in modules if module.startswith("microvm.")} == set()


def test_the_errors_can_be_had_without_anything_heavy():
    assert heavy(imported_by("from microvm import MicrovmError, PluginError")) == set()


def test_microvm_without_async_is_without_trio_until_the_first_machine():
    modules = imported_by("from microvm.sync import Machine; Machine()")
    assert heavy(modules) - {"attr", "attrs"} == set()


def test_parsing_a_command_line_imports_nothing_that_only_a_machine_needs():
    modules = imported_by("from microvm.cli import build_parser; build_parser()")
    assert heavy(modules) - {"attr", "attrs"} == set()


def test_writing_a_plugin_takes_neither_trio_nor_importlib_metadata():
    modules = imported_by("from microvm.plugins import hookimpl, BackendFactory")
    assert heavy(modules) & {"trio", "importlib_metadata", "cffi"} == set()


def test_listing_what_is_installed_imports_no_plugin():
    modules = imported_by(
        "from microvm.plugins import installed_plugins\nassert installed_plugins().discover()"
    )
    assert {m for m in modules if m.startswith("microvm_")} == set()
    assert "trio" not in modules


def test_each_name_of_the_facade_can_be_fetched():
    imported_by("import microvm\nfor name in microvm.__all__: getattr(microvm, name)")
    with pytest.raises(subprocess.CalledProcessError):
        imported_by("import microvm; microvm.no_such_name")


def test_what_a_guest_needs_to_run_is_there_without_trio():
    modules = imported_by(
        "import microvm.vmm.platform, microvm.vmm.engine, microvm.boot.protocols\n"
        "import microvm_kvm._kvm, microvm_kvm._probe, microvm_devices.vsock.device"
    )
    assert "trio" not in modules


def test_loading_every_plugin_of_ours_imports_neither_trio_nor_cffi():
    modules = imported_by(
        "from microvm.plugins import installed_plugins\n"
        "states = {s.record.key: s.state.value for s in installed_plugins().examine()}\n"
        "ours = ['backend/kvm', 'backend/qemu', 'device/vsock', 'provisioner/agent']\n"
        "assert all(states[key] == 'ok' for key in ours), states"
    )
    assert heavy(modules) & {"trio", "cffi"} == set()
