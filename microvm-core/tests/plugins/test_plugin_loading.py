"""Loading: good plugins, missing ones, two of one name, and those that are switched off."""

import logging
import sys
import types

import pytest

from microvm._discovery import Discovery, PluginGroup, PluginRecord, Switches
from microvm._plugin_manager import PluginManager
from microvm.abc import ProbeReport
from microvm.errors import (
    ConfigError,
    PluginConflict,
    PluginError,
    PluginLoadError,
    PluginMissing,
)
from microvm.plugins import (
    BackendFactory,
    DeviceFactory,
    PluginState,
    ProvisionerFactory,
    hookimpl,
)
from microvm.testing.plugins import plugin_manager

from .made_plugins import Registers, backend, device

STRICT = Switches(strict=True)


# --- good plugins ------------------------------------------------------------------------------


def test_a_component_is_loaded_once_and_on_first_use():
    calls = []

    class Plugin(Registers):
        @hookimpl
        def microvm_register_device(self):
            calls.append(1)
            return super().microvm_register_device()

    manager = plugin_manager(plugins={"device/dice": Plugin(device())})
    assert manager.discover()[0].key == "device/dice"
    assert calls == []
    assert manager.load_device("dice").name == "dice"
    assert manager.load_device("dice").summary == "A device"
    assert calls == [1]


def test_each_group_has_its_own_names():
    provisioner = ProvisionerFactory(name="same", summary="A provisioner", create=lambda: None)
    manager = plugin_manager(backend("same"), device("same"), provisioner)
    assert isinstance(manager.load_backend("same"), BackendFactory)
    assert isinstance(manager.load_device("same"), DeviceFactory)
    assert isinstance(manager.load_provisioner("same"), ProvisionerFactory)


def test_backends_come_by_preference_then_name():
    manager = plugin_manager(backend("b"), backend("z", preference=10), backend("a"))
    assert [factory.name for factory in manager.load_backends()] == ["z", "a", "b"]


def test_an_entry_point_may_refer_to_a_module_or_to_an_object_in_it(monkeypatch):
    module = types.ModuleType("given_plugin_module")
    module.microvm_register_device = hookimpl(lambda: device())
    module.inner = Registers(device("inner"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    records = (
        PluginRecord(group=PluginGroup.DEVICE, name="dice", value=module.__name__),
        PluginRecord(group=PluginGroup.DEVICE, name="inner", value=f"{module.__name__}:inner"),
    )
    manager = PluginManager(Discovery(records=records))
    assert manager.load_device("dice").name == "dice"
    assert manager.load_device("inner").name == "inner"


def test_a_plugin_without_a_registration_hook_brings_hooks_only():
    class Policy:
        @hookimpl
        def microvm_check_config(self, config):
            return []

    manager = plugin_manager(plugins={"provisioner/policy": Policy()})
    (status,) = manager.examine()
    assert (status.state, status.detail) == (PluginState.OK, "Hooks only.")
    assert status.hooks == ("microvm_check_config",)
    with pytest.raises(PluginError, match="brings hooks only"):
        manager.load_provisioner("policy")


def test_a_hook_of_a_later_version_may_be_marked_optional():
    class Ahead(Registers):
        @hookimpl(optionalhook=True)
        def microvm_not_yet(self, anything):
            raise AssertionError("never called")

    manager = plugin_manager(plugins={"device/dice": Ahead(device())})
    assert manager.load_device("dice").name == "dice"
    assert manager.examine()[0].hooks == ()


# --- missing, twice, switched off --------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "name", "dist"),
    [
        (PluginGroup.BACKEND, "qemu", "microvm-qemu"),
        (PluginGroup.DEVICE, "vsock", "microvm-devices"),
        (PluginGroup.DEVICE, "net", "microvm-devices"),
        (PluginGroup.NET_BACKEND, "passt", "microvm-devices"),
        (PluginGroup.PROVISIONER, "agent", "microvm-guest"),
    ],
)
def test_a_missing_component_of_ours_names_the_pip_install_that_brings_it(group, name, dist):
    with pytest.raises(PluginMissing) as caught:
        plugin_manager().load(group, name)
    assert name in caught.value.message
    assert caught.value.remedy == f"pip install {dist}"


def test_a_missing_strangers_component_is_told_near_names_and_what_there_is():
    manager = plugin_manager(device("dice"), device("rng"), backend("disc"))
    with pytest.raises(PluginMissing) as caught:
        manager.load_device("dise")
    assert str(caught.value) == (
        "No device 'dise' is installed.\nDid you mean 'dice'? Installed: dice, rng."
    )
    with pytest.raises(PluginMissing, match="'disc' is the name of a backend"):
        manager.load_device("disc")


def test_a_kind_of_component_is_told_in_words():
    with pytest.raises(PluginMissing, match="No net backend 'nope' is installed"):
        plugin_manager().load_net_backend("nope")
    with pytest.raises(PluginMissing, match="No net backend 'passt' is installed; microvm-dev"):
        plugin_manager().load_net_backend("passt")


def _twice(*dists):
    records = tuple(
        PluginRecord(group=PluginGroup.DEVICE, name="dice", value="v", dist=dist, version="1")
        for dist in dists
    )
    other = PluginRecord(group=PluginGroup.DEVICE, name="rng", value="v", dist="r", version="1")
    return Discovery(records=(*records, other))


def _resolve(record):
    return Registers(device(record.name))


def test_two_distributions_with_one_name_are_an_error_when_that_name_is_used():
    manager = PluginManager(_twice("a", "b"), resolve=_resolve)
    assert manager.load_device("rng").name == "rng"
    with pytest.raises(PluginConflict) as caught:
        manager.load_device("dice")
    assert "by a 1 and by b 1" in caught.value.message
    assert "MICROVM_DISABLE_PLUGINS=b" in str(caught.value)


def test_a_conflict_ends_when_one_of_the_two_is_switched_off():
    switches = Switches(disabled=frozenset({"b"}))
    manager = PluginManager(_twice("a", "b"), switches=switches, resolve=_resolve)
    assert manager.load_device("dice").name == "dice"


def test_what_is_switched_off_is_not_imported_and_said_so_when_asked_for(caplog):
    switches = Switches(disabled=frozenset({"device/dice", "nonesuch"}))
    manager = plugin_manager(plugins={"device/dice": AssertionError("imported")}, switches=switches)
    with pytest.raises(PluginMissing, match="switched off by MICROVM_DISABLE_PLUGINS"):
        manager.load_device("dice")
    assert manager.load_all(PluginGroup.DEVICE) == ()
    off, unmatched = [record.message for record in caplog.records]
    assert "switches off device/dice" in off
    assert "'nonesuch'" in unmatched


# --- all of a group ----------------------------------------------------------------------------


def _mixed(switches=None):
    return plugin_manager(
        device("good"),
        plugins={"device/bad": RuntimeError("no luck"), "device/worse": SystemExit()},
        switches=switches,
    )


def test_a_broken_plugin_costs_one_warning_and_the_others_are_loaded(caplog):
    manager = _mixed()
    for _ in range(3):
        assert [factory.name for factory in manager.load_all(PluginGroup.DEVICE)] == ["good"]
        manager.activate()
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert sorted("device/bad" in r.message for r in warnings) == [False, True]
    assert all(r.name == "microvm.plugins" for r in warnings)
    assert all(
        "MICROVM_DISABLE_PLUGINS=" in r.message or "given in code" in r.message for r in warnings
    )


def test_a_conflict_costs_one_warning_when_nobody_asked_for_the_name(caplog):
    manager = PluginManager(_twice("a", "b"), resolve=_resolve)
    assert [factory.name for factory in manager.load_all(PluginGroup.DEVICE)] == ["rng"]
    manager.activate()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("call", ["load_all", "activate"])
def test_under_strict_a_broken_plugin_raises_every_time(call):
    manager = _mixed(STRICT)
    for _ in range(2):
        with pytest.raises(PluginLoadError, match="no luck"):
            manager.activate() if call == "activate" else manager.load_all(PluginGroup.DEVICE)


def test_under_strict_unreadable_metadata_raises():
    found = Discovery(problems=("Plugins declared in x can't be read.",))
    PluginManager(found)
    with pytest.raises(PluginLoadError, match="declared in x"):
        PluginManager(found, switches=STRICT)


def test_examining_tells_of_every_plugin_and_logs_nothing(caplog):
    found = _twice("a", "b")
    off = PluginRecord(group=PluginGroup.DEVICE, name="off", value="v", dist="o", version="1")
    bad = PluginRecord(group=PluginGroup.DEVICE, name="bad", value="nope", dist="n", version="1")

    def resolve(record):
        if record.name == "bad":
            raise RuntimeError("no luck")
        return _resolve(record)

    manager = PluginManager(
        Discovery(records=(*found.records, off, bad)),
        switches=Switches(strict=True, disabled=frozenset({"off"})),
        resolve=resolve,
    )
    caplog.clear()
    told = {(s.record.name, s.state.value) for s in manager.examine()}
    assert told == {("dice", "conflict"), ("rng", "ok"), ("off", "disabled"), ("bad", "broken")}
    (broken,) = [s for s in manager.examine() if s.state is PluginState.BROKEN]
    assert broken.detail == "importing nope raised RuntimeError: no luck."
    assert caplog.records == []


# --- the callables of a factory ----------------------------------------------------------------


def test_a_create_that_raises_is_the_plugins_error_and_a_typed_error_stays_itself():
    def broken(options):
        raise SystemExit(1)

    def refuses(options):
        raise ConfigError("No such option.")

    manager = plugin_manager(device("broken", broken), device("refuses", refuses))
    with pytest.raises(PluginLoadError, match=r"device/broken .* its create raised SystemExit"):
        manager.load_device("broken").create({})
    with pytest.raises(ConfigError):
        manager.load_device("refuses").create({})


def test_a_create_that_gives_something_else_is_the_plugins_error():
    manager = plugin_manager(
        device("d", lambda options: "dice"),
        backend("b"),
        ProvisionerFactory(name="p", summary="A provisioner", create=lambda: None),
    )
    with pytest.raises(PluginLoadError, match=r"device/d .* its create gave 'dice', not a Virtio"):
        manager.load_device("d").create({})
    with pytest.raises(PluginLoadError, match="not a HostedPlatform"):
        manager.load_backend("b").create({})
    with pytest.raises(PluginLoadError, match="not a Provisioner"):
        manager.load_provisioner("p").create()


def test_a_probe_that_breaks_its_contract_makes_its_backend_unusable_and_no_more():
    def raises(options):
        raise SystemExit("no")

    manager = plugin_manager(
        backend("raises", raises),
        backend("nothing", lambda options: None),
        backend("other", lambda options: ProbeReport(backend="x", usable=True, reason="r")),
        backend("good"),
    )
    reports = {f.name: f.probe({}) for f in manager.load_backends()}
    assert {name for name, report in reports.items() if report.usable} == {"good"}
    assert reports["raises"].reason == "Its probe raised SystemExit: no."
    assert "None" in reports["nothing"].reason
    assert "backend='x'" in reports["other"].reason


def test_capabilities_and_ids_may_be_given_as_any_collection():
    factory = backend(virtio_ids=[4, 19])
    assert factory.virtio_ids == frozenset({4, 19})
    with pytest.raises(ValueError):
        device("")
