"""Hooks: who is called, in which order, and what becomes of a wrong answer or a fault.

One `test_hook_<name>` at least for every hook there is; test_plugin_docs holds that.
"""

import logging
import subprocess
import sys

import pytest

from microvm._discovery import PluginGroup, Switches
from microvm.abc import NetBackend, ProbeReport, VirtioDevice
from microvm.config import ConfigProblem, MachineConfig
from microvm.errors import ConfigError, PluginLoadError
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.plugins import (
    BootProtocol,
    DeviceFactory,
    GuestLayout,
    NetBackendFactory,
    hookimpl,
)
from microvm.testing.platform import ScriptedBackend, ScriptedProvisioner
from microvm.testing.plugins import plugin_manager

CONFIG = MachineConfig()
LAYOUT = GuestLayout(arch="x86_64", console="hvc0")
FATAL = [RuntimeError("no luck"), SystemExit(3), GeneratorExit()]
fatal = pytest.mark.parametrize("raised", FATAL, ids=lambda error: type(error).__name__)


def hooks(**functions):
    """A plugin of these hook functions."""
    plugin = type("Hooks", (), {})()
    for name, function in functions.items():
        setattr(plugin, name, hookimpl(function))
    return plugin


def manager(*plugins, **switches):
    """A manager of hook plugins p0, p1, ... Those loaded later are called earlier."""
    given = {f"device/p{index}": plugin for index, plugin in enumerate(plugins)}
    return plugin_manager(plugins=given, switches=Switches(**switches))


def raiser(error):
    def function():
        raise error

    return function


# --- registration ------------------------------------------------------------------------------


def test_hook_microvm_register_backend_offers_a_backend():
    given = plugin_manager(ScriptedBackend(name="scripted").factory())
    assert given.load_backend("scripted").summary == "scripted machines for tests"


def test_hook_microvm_register_device_offers_a_device():
    class Null(VirtioDevice):
        device_id = 4
        queue_max_sizes = (16,)

        def __init__(self, options):
            self.options = options

        async def run(self, activation):
            raise AssertionError("never run")

    record = DeviceFactory(name="d", summary="s", virtio_id=4, create=Null)
    factory = plugin_manager(record).load_device("d")
    assert factory.virtio_id == 4
    assert factory.create({"seed": 1}).options == {"seed": 1}


class String(NetBackend):
    """A net backend that keeps its options and carries nothing."""

    def __init__(self, options):
        self.options = dict(options)

    def lifespan(self, queues):
        raise AssertionError("never used")


def test_hook_microvm_register_net_backend_offers_a_net_backend():
    record = NetBackendFactory(
        name="string",
        summary="s",
        create=String,
        syntax="string:COLOUR",
        parse_cli=lambda text: {"colour": text},
    )
    given = plugin_manager(record)
    factory = given.load_net_backend("string")
    assert [factory.name for factory in given.load_net_backends()] == ["string"]
    assert factory.syntax == "string:COLOUR"
    assert factory.create(factory.parse_cli("red")).options == {"colour": "red"}


def test_a_net_backend_is_given_by_its_name_alone_unless_it_says_otherwise():
    factory = plugin_manager(
        NetBackendFactory(name="string", summary="s", create=String)
    ).load_net_backend("string")
    assert factory.syntax == "string"
    assert factory.parse_cli("") == {}
    with pytest.raises(ConfigError, match="'red'"):
        factory.parse_cli("red")


@pytest.mark.parametrize(
    ("parse_cli", "told"),
    [
        (lambda text: {}[text], "its parse_cli raised KeyError"),
        (lambda text: [text], r"its parse_cli gave \['red'\]"),
    ],
)
def test_a_net_backend_whose_syntax_fails_is_named(parse_cli, told):
    record = NetBackendFactory(name="string", summary="s", create=String, parse_cli=parse_cli)
    factory = plugin_manager(record).load_net_backend("string")
    with pytest.raises(PluginLoadError, match=f"net_backend/string.*{told}"):
        factory.parse_cli("red")


def test_a_net_backend_that_makes_something_else_is_named():
    record = NetBackendFactory(name="string", summary="s", create=lambda options: object())
    factory = plugin_manager(record).load_net_backend("string")
    with pytest.raises(PluginLoadError, match=r"net_backend/string.*not a NetBackend"):
        factory.create({})


def test_hook_microvm_register_provisioner_offers_a_provisioner():
    provisioner = ScriptedProvisioner()
    assert plugin_manager(provisioner.factory()).load_provisioner("agent").create() is provisioner


# --- choices -----------------------------------------------------------------------------------


def report(name, usable=True):
    return ProbeReport(backend=name, usable=usable, reason="It is so.")


def test_hook_microvm_select_backend_is_cores_first_usable_unless_a_plugin_chooses():
    reports = [report("a", usable=False), report("b"), report("c")]
    assert manager().select_backend(CONFIG, reports) == "b"
    picky = hooks(microvm_select_backend=lambda reports: reports[-1].backend)
    abstains = hooks(microvm_select_backend=lambda config: None)
    assert manager(picky, abstains).select_backend(CONFIG, reports) == "c"


def test_hook_microvm_select_backend_is_none_when_nothing_is_usable():
    assert manager().select_backend(CONFIG, [report("a", usable=False)]) is None


@pytest.mark.parametrize("answer", ["a", "unheard-of", 7])
def test_hook_microvm_select_backend_must_answer_with_a_usable_backend(answer):
    reports = [report("a", usable=False), report("b")]
    bad = hooks(microvm_select_backend=lambda: answer)
    with pytest.raises(PluginLoadError, match=r"device/p0 .* not a usable backend .*: b\)"):
        manager(bad).select_backend(CONFIG, reports)


PROTOCOL = BootProtocol(name="flat", summary="A flat image", load=lambda plan, memory: {})


def test_hook_microvm_boot_protocol_sees_the_head_and_the_first_to_know_wins():
    def recognise(head, arch):
        assert len(head) <= 4096
        return PROTOCOL if (head[:4], arch) == (b"FLAT", "x86_64") else None

    given = manager(hooks(microvm_boot_protocol=recognise))
    assert given.boot_protocol(b"FLAT" + bytes(10_000), "x86_64") is PROTOCOL
    assert given.boot_protocol(b"FLAT", "aarch64") is None
    assert given.boot_protocol(b"", "x86_64") is None


def test_hook_microvm_boot_protocol_must_answer_with_a_protocol():
    with pytest.raises(PluginLoadError, match="which is not a BootProtocol"):
        manager(hooks(microvm_boot_protocol=lambda: "flat")).boot_protocol(b"", "x86_64")


def test_hook_microvm_kernel_cmdline_collects_the_words_of_all():
    given = manager(
        hooks(microvm_kernel_cmdline=lambda layout: [f"console={layout.console}", "a"]),
        hooks(microvm_kernel_cmdline=lambda: None),
        hooks(microvm_kernel_cmdline=lambda config: (f"mem={config.mem_size_mib}M",)),
    )
    assert given.kernel_cmdline(CONFIG, LAYOUT) == ["mem=128M", "console=hvc0", "a"]


def test_hook_microvm_kernel_cmdline_gets_the_hosts_architecture_by_default():
    seen = []
    manager(hooks(microvm_kernel_cmdline=lambda layout: seen.append(layout))).kernel_cmdline(CONFIG)
    (layout,) = seen
    assert layout.arch not in ("", "amd64", "arm64")
    assert layout.console is None


@pytest.mark.parametrize("answer", ["quiet", ["two words"], ["new\nline"], ["ä"], [7], 7])
def test_hook_microvm_kernel_cmdline_takes_words_of_printable_ascii_alone(answer):
    bad = hooks(microvm_kernel_cmdline=lambda: answer)
    with pytest.raises(PluginLoadError, match="microvm_kernel_cmdline returned"):
        manager(bad).kernel_cmdline(CONFIG, LAYOUT)


STRICT_CALLS = {
    "microvm_select_backend": lambda given: given.select_backend(CONFIG, [report("b")]),
    "microvm_boot_protocol": lambda given: given.boot_protocol(b"", "x86_64"),
    "microvm_kernel_cmdline": lambda given: given.kernel_cmdline(CONFIG, LAYOUT),
}


@fatal
@pytest.mark.parametrize("hook", STRICT_CALLS)
def test_a_fault_in_a_hook_that_decides_is_an_error_with_the_plugins_name(hook, raised):
    """Row 100."""
    given = manager(hooks(**{hook: raiser(raised)}))
    with pytest.raises(PluginLoadError, match=rf"device/p0 .*{hook} raised") as caught:
        STRICT_CALLS[hook](given)
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("hook", STRICT_CALLS)
def test_an_error_that_a_plugin_raises_on_purpose_stays_itself(hook):
    given = manager(hooks(**{hook: raiser(ConfigError("Not on a Monday."))}))
    with pytest.raises(ConfigError, match="Monday"):
        STRICT_CALLS[hook](given)


# --- heard and told ----------------------------------------------------------------------------


def problem(where):
    return ConfigProblem(where, "is wrong.")


def test_hook_microvm_check_config_hears_every_plugin_and_takes_generators():
    def yields(config, backend):
        yield problem(backend)
        yield problem("second")

    given = manager(
        hooks(microvm_check_config=lambda: [problem("first")]),
        hooks(microvm_check_config=lambda: None),
        hooks(microvm_check_config=yields),
    )
    assert [p.where for p in given.check_config(CONFIG, "paper")] == ["paper", "second", "first"]


@pytest.mark.parametrize("answer", ["text", ["text"], 7])
def test_hook_microvm_check_config_logs_an_answer_that_is_no_problem(answer, caplog):
    given = manager(
        hooks(microvm_check_config=lambda: [problem("good")]),
        hooks(microvm_check_config=lambda: answer),
    )
    assert given.check_config(CONFIG, "paper") == [problem("good")]
    (record,) = caplog.records
    assert "device/p1" in record.message
    assert "microvm_check_config returned" in record.message


def test_hook_microvm_machine_started_is_told_of_the_machine():
    seen = []
    machine = object()
    given = manager(hooks(microvm_machine_started=lambda machine: seen.append(machine)))
    given.activate()
    given.notify_machine_started(machine)
    assert seen == [machine]


def test_hook_microvm_guest_ready_is_told_of_the_machine_and_the_guest():
    seen = []
    machine, guest = object(), object()
    given = manager(hooks(microvm_guest_ready=lambda guest, machine: seen.append((machine, guest))))
    given.activate()
    given.notify_guest_ready(machine, guest)
    given.notify_guest_ready(machine, None)
    assert seen == [(machine, guest), (machine, None)]


def test_hook_microvm_machine_stopped_is_told_how_it_ended():
    seen = []
    ended = MachineOutcome(reason=OutcomeReason.PANIC, detail="The guest's kernel panicked.")
    given = manager(hooks(microvm_machine_stopped=lambda outcome: seen.append(outcome)))
    given.activate()
    given.notify_machine_stopped(object(), ended)
    assert seen == [ended]


ISOLATED_CALLS = {
    "microvm_check_config": lambda given: given.check_config(CONFIG, "paper"),
    "microvm_machine_started": lambda given: given.notify_machine_started(None),
    "microvm_guest_ready": lambda given: given.notify_guest_ready(None, None),
    "microvm_machine_stopped": lambda given: given.notify_machine_stopped(None, None),
}


@fatal
@pytest.mark.parametrize("hook", ISOLATED_CALLS)
def test_a_fault_in_a_hook_that_is_told_is_logged_and_the_others_are_called(hook, raised, caplog):
    """Row 100."""
    called = []
    given = manager(
        hooks(**{hook: lambda: called.append("before")}),
        hooks(**{hook: raiser(raised)}),
        hooks(**{hook: lambda: called.append("after")}),
    )
    given.activate()
    with caplog.at_level(logging.DEBUG):
        ISOLATED_CALLS[hook](given)
    assert called == ["after", "before"]
    warning, debug = caplog.records
    assert f"Plugin device/p1 of this program: {hook} raised" in warning.message
    assert debug.levelno == logging.DEBUG
    assert debug.exc_info[1] is raised


def test_a_generator_that_raises_midway_is_a_fault_of_its_plugin_alone(caplog):
    def midway():
        yield problem("lost")
        raise RuntimeError("no luck")

    given = manager(
        hooks(microvm_check_config=midway),
        hooks(microvm_check_config=lambda: [problem("kept")]),
    )
    assert given.check_config(CONFIG, "paper") == [problem("kept")]
    assert "device/p0" in caplog.text


@pytest.mark.parametrize("hook", [*STRICT_CALLS, *ISOLATED_CALLS])
def test_ctrl_c_passes_through_every_hook(hook):
    given = manager(hooks(**{hook: raiser(KeyboardInterrupt())}))
    given.activate()
    with pytest.raises(KeyboardInterrupt):
        {**STRICT_CALLS, **ISOLATED_CALLS}[hook](given)


# --- who is called -----------------------------------------------------------------------------


def test_installed_is_active_the_hooks_of_a_component_nobody_uses_are_called():
    given = manager(hooks(microvm_check_config=lambda: [problem("policy")]))
    assert given.check_config(CONFIG, "paper") == [problem("policy")]


def test_a_plugin_that_fails_to_load_has_no_hooks_left_behind(caplog):
    class Half:
        @hookimpl
        def microvm_check_config(self):
            raise AssertionError("never called")

        @hookimpl
        def microvm_register_device(self):
            raise RuntimeError("no luck")

    given = manager(Half())
    assert given.check_config(CONFIG, "paper") == []
    assert len(caplog.records) == 1


def test_tryfirst_and_trylast_order_plugins():
    def plugin(name, **options):
        holder = type("Hooks", (), {})()
        holder.microvm_kernel_cmdline = hookimpl(**options)(lambda: [name])
        return holder

    given = manager(plugin("first", tryfirst=True), plugin("last", trylast=True), plugin("middle"))
    assert given.kernel_cmdline(CONFIG, LAYOUT) == ["first", "middle", "last"]


def test_a_component_loaded_by_name_has_its_hooks_called_once():
    class Plugin:
        @hookimpl
        def microvm_register_device(self):
            return DeviceFactory(name="p0", summary="s", virtio_id=4, create=lambda options: None)

        @hookimpl
        def microvm_check_config(self):
            return [problem("once")]

    given = manager(Plugin())
    given.load_device("p0")
    given.load_all(PluginGroup.DEVICE)
    assert given.check_config(CONFIG, "paper") == [problem("once")]


# --- the trace ---------------------------------------------------------------------------------

TRACED = """
from microvm.config import MachineConfig
from microvm.plugins import hookimpl
from microvm._discovery import Switches
from microvm.testing.plugins import plugin_manager

class Hooks:
    @hookimpl
    def microvm_check_config(self, backend):
        return []

    @hookimpl
    def microvm_kernel_cmdline(self):
        raise RuntimeError("no luck")

switches = Switches.from_environment({"MICROVM_TRACE_HOOKS": "1"})
manager = plugin_manager(plugins={"device/traced": Hooks()}, switches=switches)
manager.check_config(MachineConfig(), "paper")
try:
    manager.kernel_cmdline(MachineConfig())
except Exception as error:
    print(type(error).__name__)
"""


def test_the_trace_has_each_call_with_plugin_arguments_and_result_on_stderr():
    done = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, check=True, timeout=60
    )
    registered, checked, raised = done.stderr.splitlines()
    assert registered == "microvm hook: device/traced: register() -> []"
    assert checked.startswith("microvm hook: device/traced: microvm_check_config(config=Machine")
    assert checked.endswith("backend='paper') -> []")
    assert raised.endswith("raised RuntimeError: no luck")
    assert done.stdout == "PluginLoadError\n"
