"""How hooks are called: plugin by plugin, so that every answer and every fault has a name.

pluggy would call all implementations of a hook in one go, and one that raises ends the call for
all. Here each plugin's is called by itself, in pluggy's order (`tryfirst`, then the one
registered last, then `trylast`), in one of two manners:

* strict, where an answer decides what is built: a fault is a `PluginLoadError`;
* isolated, where plugins are only heard or told: a fault is logged and the others have their turn.

`KeyboardInterrupt` alone passes through both.
"""

from __future__ import annotations

import logging
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from microvm._plugin_guard import WrongAnswer, call, describe, load_error

if TYPE_CHECKING:
    import pluggy

    from microvm._discovery import PluginRecord

T = TypeVar("T")

log = logging.getLogger("microvm.plugins")
trace_log = logging.getLogger("microvm.hooks")


class HookCalls:
    """Calls hooks on the plugins of one pluggy manager. For one thread.

    The `read` of each method turns what an implementation returned (never None) into what the
    caller wants, or raises `WrongAnswer`; it runs under the same guard as the implementation,
    which may be a generator.

    Args:
        pluggy_manager: Has the hookspecs and the plugins.
        records: The record of each registered plugin by its key, read when needed. Core's own
            implementations have none: what they raise is core's bug and comes out as it is.
    """

    def __init__(
        self, pluggy_manager: pluggy.PluginManager, records: Mapping[str, PluginRecord]
    ) -> None:
        self._pluggy = pluggy_manager
        self._records = records

    def strict(self, hook: str, read: Callable[[Any], T], /, **arguments: object) -> Iterator[T]:
        """Each plugin's answer that is not None; the next plugin is called when asked for.

        Raises:
            PluginLoadError: an implementation raised, or its answer is wrong.
            MicrovmError: an implementation raised it on purpose.
        """
        for key, implementation in self._implementations(hook, read, arguments):
            record = self._records.get(key)
            if record is None:
                answer = implementation()
            else:
                try:
                    answer = call(record, hook, implementation)
                except WrongAnswer as error:
                    raise load_error(record, f"{hook} returned {error}") from None
            if answer is not None:
                yield answer

    def isolated(self, hook: str, read: Callable[[Any], T], /, **arguments: object) -> Iterator[T]:
        """Each plugin's answer that is not None; a fault is logged with the plugin's name."""
        for key, implementation in self._implementations(hook, read, arguments):
            try:
                answer = implementation()
            except KeyboardInterrupt:
                raise
            except WrongAnswer as error:
                self._log_fault(key, f"{hook} returned {error}")
            except BaseException as error:
                self._log_fault(key, f"{hook} raised {describe(error)}")
                log.debug("Traceback of plugin %s", key, exc_info=error)
            else:
                if answer is not None:
                    yield answer

    def _log_fault(self, key: str, what: str) -> None:
        record = self._records.get(key)
        origin = f"{key} of {record.origin}" if record is not None else key
        log.warning("Plugin %s: %s; going on without it.", origin, what)

    def _implementations(
        self, hook: str, read: Callable[[Any], T], arguments: Mapping[str, object]
    ) -> Iterator[tuple[str, Callable[[], T | None]]]:
        caller: pluggy.HookCaller = getattr(self._pluggy.hook, hook)
        assert caller.spec is not None
        takes_first = bool(caller.spec.opts.get("firstresult"))
        plugins = {impl.plugin_name: impl.plugin for impl in reversed(caller.get_hookimpls())}
        for key, plugin in plugins.items():
            others = [other for other in plugins.values() if other is not plugin]
            alone = self._pluggy.subset_hook_caller(hook, others)

            def implementation(alone: pluggy.HookCaller = alone) -> T | None:
                answer = alone(**arguments)
                if not takes_first:  # a list, from which pluggy has dropped None
                    answer = answer[0] if answer else None
                return None if answer is None else read(answer)

            yield key, implementation


def trace_calls(pluggy_manager: pluggy.PluginManager) -> None:
    """Log every hook call with its arguments and what came of it, to stderr."""
    if not trace_log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("microvm hook: %(message)s"))
        trace_log.addHandler(handler)
        trace_log.setLevel(logging.DEBUG)
        trace_log.propagate = False
    short = reprlib.Repr()
    short.maxother = short.maxstring = 400

    def before(
        hook: str, implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
    ) -> None:
        if implementations:
            words = ", ".join(f"{name}={short.repr(value)}" for name, value in arguments.items())
            plugins = ", ".join(impl.plugin_name for impl in implementations)
            trace_log.debug("%s(%s) of %s", hook, words, plugins)

    def after(
        outcome: pluggy.Result[Any],
        hook: str,
        implementations: Sequence[pluggy.HookImpl],
        arguments: Mapping[str, Any],
    ) -> None:
        if not implementations:
            return
        if outcome.exception is not None:
            trace_log.debug("%s raised %s", hook, describe(outcome.exception))
        else:
            trace_log.debug("%s -> %s", hook, short.repr(outcome.get_result()))

    pluggy_manager.add_hookcall_monitoring(before, after)
