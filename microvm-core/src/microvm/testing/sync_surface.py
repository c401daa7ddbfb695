"""Whether a class without async has the names and arguments of the async one that it wraps.

PAIR = SyncPair(kept.Store, kept.sync.Store, renamed={"aclose": "close"})

def test_the_two_are_alike():
    PAIR.check()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs

Parameters = list[inspect.Parameter]


@attrs.frozen
class SyncPair:
    """An async class and its wrapper. What a check finds wrong is an `AssertionError`."""

    original: type
    wrapper: type
    renamed: Mapping[str, str] = attrs.field(factory=dict, kw_only=True)
    """Names of the original that are called otherwise: ``aclose``."""
    not_for_users: frozenset[str] = attrs.field(
        default=frozenset(), converter=frozenset, kw_only=True
    )
    """Public names of the original that the wrapper has no use for."""
    without: Mapping[str, frozenset[str]] = attrs.field(factory=dict, kw_only=True)
    """By method: arguments that the wrapper does not take."""
    made_by_users: bool = attrs.field(default=True, kw_only=True)
    """Whether users call it, and not only get it: then `__init__` is compared too."""

    def check(self) -> None:
        """All of it."""
        self.check_names()
        self.check_arguments()
        self.check_nothing_is_awaited()

    def check_names(self) -> None:
        """Every name is there, and no other."""
        wanted = {self.renamed.get(name, name) for name in self._public()}
        assert wanted == _public(self.wrapper)

    def check_arguments(self) -> None:
        """Every method takes the same, and what is a property is one."""
        for name in self._public() | ({"__init__"} if self.made_by_users else set()):
            theirs = inspect.getattr_static(self.original, name, None)
            ours = inspect.getattr_static(self.wrapper, self.renamed.get(name, name), None)
            if theirs is not None:  # else it is an attribute, and may well be a property here
                assert isinstance(theirs, property) == isinstance(ours, property), name
            if inspect.isfunction(theirs):
                assert inspect.isfunction(ours), name
                left_out = self.without.get(name, frozenset())
                wanted = [one for one in _parameters(theirs) if one.name not in left_out]
                assert _parameters(ours) == wanted, name

    def check_nothing_is_awaited(self) -> None:
        """No method of the wrapper's gives a coroutine or an async generator."""
        for part in _parts(self.wrapper):
            for name, member in vars(part).items():
                function = inspect.unwrap(member) if callable(member) else member
                assert not inspect.iscoroutinefunction(function), name
                assert not inspect.isasyncgenfunction(function), name

    def _public(self) -> set[str]:
        return _public(self.original) - self.not_for_users


def _parts(kind: type) -> list[type]:
    """The class and what it is made of, as far as that comes with it or from core."""
    here = {kind.__module__.partition(".")[0], "microvm"}
    return [part for part in kind.__mro__ if part.__module__.partition(".")[0] in here]


def _public(kind: type) -> set[str]:
    names = {name for part in _parts(kind) for name in vars(part)}
    return {name for name in names | {*inspect.get_annotations(kind)} if not name.startswith("_")}


def _parameters(function: Callable[..., Any]) -> Parameters:
    return list(inspect.signature(inspect.unwrap(function)).parameters.values())
