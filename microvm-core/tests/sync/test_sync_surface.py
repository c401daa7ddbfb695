"""`microvm.sync` has the names and arguments of what it wraps: nothing is forgotten, or drifts."""

import pytest

import microvm.abc
from microvm import sync
from microvm._machine import Machine
from microvm.forwards.forward import Forward
from microvm.testing.sync_surface import SyncPair

PAIRS = [
    SyncPair(
        Machine,
        sync.Machine,
        # What they return is of the trio thread; see `Portal`.
        not_for_users={"device", "link"},
        # A program that launches its platform early does so to hide the import of trio: on the
        # background thread that is hidden already.
        # The clocks are for tests of what a host's sleep does.
        without={"__init__": frozenset({"assembly", "clocks"})},
    ),
    SyncPair(
        microvm.abc.Guest,
        sync.Guest,
        not_for_users={"socks5_handler", "outbound_handler"},
        made_by_users=False,
    ),
    SyncPair(microvm.abc.GuestProcess, sync.GuestProcess, made_by_users=False),
    SyncPair(microvm.abc.GuestFiles, sync.GuestFiles, made_by_users=False),
    SyncPair(microvm.abc.GuestJob, sync.GuestJob, made_by_users=False),
    SyncPair(microvm.abc.JobOutput, sync.JobOutput, made_by_users=False),
    SyncPair(
        Forward,
        sync.Forward,
        renamed={"aclose": "close"},
        not_for_users={"serve"},
        made_by_users=False,
    ),
]
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.original.__name__)


@each_pair
def test_every_name_is_there_and_no_other(pair):
    pair.check_names()


@each_pair
def test_every_method_takes_the_same_arguments(pair):
    pair.check_arguments()


@each_pair
def test_no_wrapper_leaves_anything_to_be_awaited(pair):
    pair.check_nothing_is_awaited()


def test_what_is_offered_is_listed():
    assert sorted(sync.__all__) == sync.__all__
    assert all(hasattr(sync, name) for name in sync.__all__)


# --- the check itself, which plugins use too ---------------------------------------------------


class Store:
    size: int

    def __init__(self, machine): ...

    async def put(self, key, *, value=None): ...

    @property
    def name(self): ...

    async def aclose(self): ...


class Kept:
    def __init__(self, machine): ...

    @property
    def size(self): ...

    def put(self, key, *, value=None): ...

    @property
    def name(self): ...

    def close(self): ...


class Forgotten(Kept):
    name = property(lambda self: None)

    def another(self): ...


class Drifted(Kept):
    def put(self, key, value=None): ...


class NoProperty(Kept):
    def name(self): ...


class MadeOtherwise(Kept):
    def __init__(self, machine, more): ...


class LeftAsync(Kept):
    async def put(self, key, *, value=None): ...


def test_a_faithful_wrapper_passes():
    SyncPair(Store, Kept, renamed={"aclose": "close"}).check()
    SyncPair(Store, MadeOtherwise, renamed={"aclose": "close"}, made_by_users=False).check()


@pytest.mark.parametrize("wrapper", [Forgotten, Drifted, NoProperty, MadeOtherwise, LeftAsync])
def test_an_unfaithful_one_does_not(wrapper):
    with pytest.raises(AssertionError):
        SyncPair(Store, wrapper, renamed={"aclose": "close"}).check()
    with pytest.raises(AssertionError):
        SyncPair(Store, Kept).check()
