"""What a machine has of its console: where it leads, its last lines, and a stream to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from microvm.abc import Capability

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from trio.abc import HalfCloseableStream

    from microvm.abc import ConsoleSink, RunningMachine
    from microvm.config import ConsoleConfig
    from microvm.consoles.served import SinkService


class ConsoleVerbs(ABC):
    """The part of `Machine` that is about its console."""

    _console: SinkService | None
    """What serves the console's sink, where there is one."""

    @abstractmethod
    def _started(self) -> RunningMachine:
        """The machine on its platform; a `RuntimeError` before it is started."""

    @abstractmethod
    def _need(self, capability: Capability) -> None:
        """A `ConfigError` if the backend can't do it."""

    @property
    def console_tail(self) -> tuple[str, ...]:
        """The guest's last console lines, control characters made visible."""
        return self._started().console_tail()

    @property
    def console_path(self) -> str | None:
        """Where the console is to be found: the file, or the terminal made for it."""
        return self._console.sink.path if self._console is not None else None

    async def open_console(self) -> HalfCloseableStream:
        """A stream to the guest's console, both ways; see `RunningMachine.open_console`."""
        self._need(Capability.CONSOLE)
        return await self._started().open_console()

    async def wait_console(self) -> None:
        """Wait until the console's sink has ended. At once, where there is none.

        It ends with the guest's last words, or because whoever sat at it has left.
        """
        self._started()
        if self._console is not None:
            await self._console.ended.wait()


async def join_console(
    stack: AsyncExitStack, sink: ConsoleSink | None, config: ConsoleConfig
) -> SinkService | None:
    """Have a sink served until the stack is left, or the one that the configuration asks for.

    Raises:
        ConfigError: the sink can't be used.
    """
    from microvm.consoles.sinks import sink_for

    sink = sink if sink is not None else sink_for(config)
    if sink is None:
        return None
    from microvm.consoles.served import SinkService

    service = SinkService(sink)
    await stack.enter_async_context(service.lifespan())
    return service
