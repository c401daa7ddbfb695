"""`microvm.sync` has the names and arguments of what it wraps: nothing is forgotten, or drifts."""

import inspect

import pytest

import microvm.abc
from microvm import sync
from microvm._machine import Machine
from microvm.forwards.forward import Forward

PAIRS = [
    (Machine, sync.Machine),
    (microvm.abc.Guest, sync.Guest),
    (microvm.abc.GuestProcess, sync.GuestProcess),
    (microvm.abc.GuestFiles, sync.GuestFiles),
    (microvm.abc.GuestJob, sync.GuestJob),
    (microvm.abc.JobOutput, sync.JobOutput),
    (Forward, sync.Forward),
]
RENAMED = {"aclose": "close"}
FOR_THE_FRAMEWORK = {
    (Forward, "serve"),
    # What it returns is of the trio thread.
    (Machine, "device"),
    (Machine, "link"),
    (microvm.abc.Guest, "socks5_handler"),
    (microvm.abc.Guest, "outbound_handler"),
}
"""Methods that are public to core and not for users."""
WITHOUT = {
    # A program that launches its platform early does so to hide the import of trio: on the
    # background thread that is hidden already.
    # The clocks are for tests of what a host's sleep does.
    (Machine, "__init__"): {"assembly", "clocks"},
    # How a machine makes its forwards.
    (Forward, "__init__"): {"target", "handle"},
}


def parts(kind):
    """The class and what of ours it is made of."""
    return [part for part in kind.__mro__ if part.__module__.startswith("microvm.")]


def public(kind):
    names = {name for part in parts(kind) for name in vars(part) if not name.startswith("_")}
    names |= {name for name in kind.__annotations__ if not name.startswith("_")}
    return {name for name in names if (kind, name) not in FOR_THE_FRAMEWORK}


each_pair = pytest.mark.parametrize(("original", "wrapper"), PAIRS, ids=lambda kind: kind.__name__)


@each_pair
def test_every_name_is_there_and_no_other(original, wrapper):
    wanted = {RENAMED.get(name, name) for name in public(original)}
    assert wanted == public(wrapper), "see microvm/sync/"


@each_pair
def test_every_method_takes_the_same_arguments(original, wrapper):
    for name in public(original) | {"__init__"}:
        theirs = inspect.getattr_static(original, name, None)
        ours = inspect.getattr_static(wrapper, RENAMED.get(name, name), None)
        if theirs is not None:  # else it is an attribute, and may well be a property here
            assert isinstance(theirs, property) == isinstance(ours, property), name
        if inspect.isfunction(theirs) and (name != "__init__" or original is Machine):
            left_out = WITHOUT.get((original, name), set())
            wanted = [p for p in parameters(theirs) if p.name not in left_out]
            assert parameters(ours) == wanted, name


def parameters(function):
    return list(inspect.signature(inspect.unwrap(function)).parameters.values())


@each_pair
def test_no_wrapper_leaves_anything_to_be_awaited(original, wrapper):
    for name, member in [item for part in parts(wrapper) for item in vars(part).items()]:
        assert not inspect.iscoroutinefunction(inspect.unwrap(member)), name
        assert not inspect.isasyncgenfunction(inspect.unwrap(member)), name


def test_what_is_offered_is_listed():
    assert sorted(sync.__all__) == sync.__all__
    assert all(hasattr(sync, name) for name in sync.__all__)
