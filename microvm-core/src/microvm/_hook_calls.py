"""How hooks are called: plugin by plugin, so that every answer and every fault has a name.

pluggy would call all implementations of a hook in one go, and one that raises ends the call for
all. Here each plugin's is called by itself, in pluggy's order (`tryfirst`, then the one
registered last, then `trylast`), in one of two manners:

* strict, where an answer decides what is built: a fault is a `PluginLoadError`;
* isolated, where plugins are only heard or told: a fault is logged and the others have their turn.

`KeyboardInterrupt` alone passes through both.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from microvm._plugin_guard import SHORT, WrongAnswer, call, describe, load_error

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
        traces: Whether to log each call to `microvm.hooks`.
    """

    def __init__(
        self,
        pluggy_manager: pluggy.PluginManager,
        records: Mapping[str, PluginRecord],
        *,
        traces: bool,
    ) -> None:
        self._pluggy = pluggy_manager
        self._records = records
        self._traces = traces

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
        for impl in reversed(caller.get_hookimpls()):
            implementation = functools.partial(_answer, impl, arguments, read)
            if self._traces:
                yield impl.plugin_name, traced(hook, impl.plugin_name, arguments, implementation)
            else:
                yield impl.plugin_name, implementation


def _answer(
    impl: pluggy.HookImpl, arguments: Mapping[str, object], read: Callable[[Any], T]
) -> T | None:
    answer = impl.function(*(arguments[name] for name in impl.argnames))
    return None if answer is None else read(answer)


def traced(
    hook: str, key: str, arguments: Mapping[str, object], implementation: Callable[[], T]
) -> Callable[[], T]:
    """The same implementation, which logs each call with its arguments and what came of it."""
    words = ", ".join(f"{name}={SHORT.repr(value)}" for name, value in arguments.items())

    def call_and_log() -> T:
        try:
            answer = implementation()
        except BaseException as error:
            trace_log.debug("%s: %s(%s) raised %s", key, hook, words, describe(error))
            raise
        trace_log.debug("%s: %s(%s) -> %s", key, hook, words, SHORT.repr(answer))
        return answer

    return call_and_log


def trace_to_stderr() -> None:
    """Send the hook calls that are traced to stderr, whatever the program's logging shows."""
    if not trace_log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("microvm hook: %(message)s"))
        trace_log.addHandler(handler)
        trace_log.setLevel(logging.DEBUG)
        trace_log.propagate = False
