"""`Forward` without async."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microvm.forwards import Address
    from microvm.forwards.forward import Forward as AsyncForward
    from microvm.sync._loop import BackgroundLoop


class Forward:
    """A forward that works, until it is closed or the machine ends; see `microvm.forwards`.

    A context manager. It needs no thread of the caller's to carry its bytes.
    """

    def __init__(self, loop: BackgroundLoop, forward: AsyncForward) -> None:
        self._loop = loop
        self._forward = forward

    def __repr__(self) -> str:
        return repr(self._forward)

    @property
    def address(self) -> Address:
        """Where to connect, its port chosen."""
        return self._forward.address

    @property
    def target(self) -> Address | str:
        """Where it leads."""
        return self._forward.target

    @property
    def connections(self) -> int:
        """How many it carries now."""
        return self._forward.connections

    def close(self) -> None:
        """Take no more connections and end those that there are. Again, or later, is fine."""
        if not self._loop.foreign:
            self._loop.call(self._forward.aclose, bounded=False)

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
