"""`Port`: a backend's link as all tasks of the device share it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from microvm.abc import NetLink
    from microvm.errors import NetLinkDown

log = logging.getLogger(__name__)


class Port:
    """One link, and whether it still leads anywhere.

    Args:
        link: The link.
        went_down: Called once, when it is found to be down.
    """

    def __init__(self, link: NetLink, went_down: Callable[[], None]) -> None:
        self.link = link
        self.down = False
        self._went_down = went_down
        self._writers = trio.Lock()

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`, for any number of tasks.

        Raises:
            NetLinkDown: as there.
        """
        async with self._writers:
            await self.link.wait_writable()

    def put_down(self, error: NetLinkDown) -> None:
        """The other side is gone: said once; what is sent from now on is lost."""
        if not self.down:
            self.down = True
            log.error("The guest's network is down. %s", error)
            self._went_down()
