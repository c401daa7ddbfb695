"""From a `ConsoleConfig` to its sink."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.config import ConsoleConfig, ConsoleOutput

if TYPE_CHECKING:
    from microvm.abc.console import ConsoleSink


def sink_for(config: ConsoleConfig) -> ConsoleSink | None:
    """The sink; None where the console leads nowhere."""
    # Each is imported when it is wanted: most machines have none.
    match config.output:
        case ConsoleOutput.FILE:
            from microvm.consoles.file_sink import FileSink

            assert config.path is not None
            return FileSink(config.path, config.max_file_bytes)
        case ConsoleOutput.STDIO:
            from microvm.consoles.stdio_sink import StdioSink

            return StdioSink()
        case ConsoleOutput.PTY:
            from microvm.consoles.pty_sink import PtySink

            return PtySink()
    return None
