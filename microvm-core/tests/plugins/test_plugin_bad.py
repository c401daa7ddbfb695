"""What a plugin must keep, and what its user is told when it does not."""

import asyncio

import pytest

from microvm._discovery import Discovery, PluginGroup, PluginRecord
from microvm._plugin_manager import PluginManager
from microvm.errors import (
    PluginLoadError,
)
from microvm.plugins import (
    DeviceFactory,
    hookimpl,
)
from microvm.testing.plugins import plugin_manager

from .made_plugins import Registers, backend, device, load_error


@pytest.mark.parametrize(
    "raised",
    [RuntimeError("no luck"), SystemExit(3), asyncio.CancelledError(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["import", "registration"])
def test_whatever_a_plugin_raises_is_a_load_error_with_its_cause(raised, where):
    error = load_error(raised if where == "import" else Registers(raised))
    assert type(raised).__name__ in error.message
    assert error.__cause__ is raised


@pytest.mark.parametrize("where", ["import", "registration"])
def test_ctrl_c_passes_through_a_plugin(where):
    plugin = KeyboardInterrupt() if where == "import" else Registers(KeyboardInterrupt())
    manager = plugin_manager(plugins={"device/dice": plugin})
    with pytest.raises(KeyboardInterrupt):
        manager.load_device("dice")


def test_a_load_error_names_distribution_version_cause_and_way_out():
    record = PluginRecord(
        group=PluginGroup.DEVICE, name="d", value="no_such_module_at_all", dist="x-d", version="7"
    )
    with pytest.raises(PluginLoadError) as caught:
        PluginManager(Discovery(records=(record,))).load_device("d")
    assert str(caught.value) == (
        "Plugin device/d of x-d 7 can't be used: importing no_such_module_at_all raised "
        "ModuleNotFoundError: No module named 'no_such_module_at_all'.\n"
        "Update or uninstall x-d, or go without it: MICROVM_DISABLE_PLUGINS=device/d"
    )


def test_an_endless_or_unprintable_message_of_a_plugin_does_not_become_ours():
    class Unprintable(Exception):
        def __str__(self):
            raise ValueError

    assert "Unprintable: (its message can't be read)" in load_error(Unprintable()).message
    error = load_error(RuntimeError("spam\n" * 10_000))
    assert len(error.message) < 500
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (None, "returned nothing"),
        ("dice", "returned str, not DeviceFactory"),
        (backend("dice"), "returned BackendFactory, not DeviceFactory"),
        (device("other"), "a record named 'other', and the entry point is 'dice'"),
    ],
    ids=["nothing", "str", "other-type", "other-name"],
)
def test_a_registration_returns_one_record_of_its_type_and_name(outcome, told):
    assert told in load_error(Registers(outcome)).message


def test_a_plugin_registers_the_kind_of_its_group_and_no_other():
    class Both(Registers):
        @hookimpl
        def microvm_register_backend(self):
            return backend("dice")

    assert (
        "microvm.devices takes microvm_register_device alone" in load_error(Both(device())).message
    )
    error = load_error(Registers(device()), key="backend/dice")
    assert "microvm.backends takes microvm_register_backend alone" in error.message


def _with(name, function):
    plugin = Registers(device())
    setattr(plugin, name, function)
    return plugin


async def _async():
    raise AssertionError("never called")


def _wrapper():
    return (yield)


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (object(), "marks no function with @hookimpl"),
        (_with("microvm_check_config", lambda: None), "microvm_check_config is not marked"),
        (
            _with("microvm_chek_config", hookimpl(lambda: None)),
            "there is no hook microvm_chek_config; did you mean microvm_check_config?",
        ),
        (_with("microvm_check_config", hookimpl(lambda confg: None)), "confg"),
        (_with("microvm_guest_ready", hookimpl(_async)), "is async, and hooks are synchronous"),
        (
            _with("microvm_select_backend", hookimpl(wrapper=True)(_wrapper)),
            "is a hook wrapper, and hooks are called one by one",
        ),
    ],
    ids=["no-hook", "unmarked", "unknown-hook", "misspelt-argument", "async", "wrapper"],
)
def test_a_plugin_with_a_mistake_in_its_hooks_is_refused_whole(plugin, told):
    assert told in load_error(plugin).message


def test_a_record_that_is_not_valid_is_refused_by_its_own_class():
    class Plugin:
        @hookimpl
        def microvm_register_device(self):
            return DeviceFactory(name="dice", summary="", virtio_id=4, create="not callable")

    assert "registering it raised ValueError" in load_error(Plugin()).message


def test_one_module_under_two_names_is_refused_for_the_second():
    plugin = Registers(device("a"))
    manager = plugin_manager(plugins={"device/a": plugin, "device/b": plugin})
    assert manager.load_device("a").name == "a"
    with pytest.raises(PluginLoadError, match="is registered as device/a already"):
        manager.load_device("b")
    assert manager.load_device("a").name == "a"


def test_a_failed_plugin_fails_the_same_way_again_and_is_not_run_again():
    runs = []

    class Plugin(Registers):
        @hookimpl
        def microvm_register_device(self):
            runs.append(1)
            raise RuntimeError("no luck")

    manager = plugin_manager(plugins={"device/dice": Plugin(None)})
    messages = set()
    for _ in range(3):
        with pytest.raises(PluginLoadError) as caught:
            manager.load_device("dice")
        messages.add(str(caught.value))
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(messages) == 1
    assert runs == [1]
