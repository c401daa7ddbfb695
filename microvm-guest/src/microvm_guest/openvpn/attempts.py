"""How far the attempts to come up for the first time have got. Pure.

OpenVPN goes through the configuration's servers in turn, for ever, and asks us for an address each
time. When each server was tried, at each address that its name has, whoever waits is told that it
will not come up; what was up once is not counted here.
"""

from __future__ import annotations

from typing import Final

import attrs

MAX_ATTEMPTS: Final = 16
"""For the sake of names with several addresses: each attempt takes its time, and who waits wants to
know. Configurations that name more servers have one for each."""

Server = tuple[str, int, str]
"""Name, port, and OpenVPN's word for the protocol; the last is one of few."""


@attrs.define
class Attempts:
    """Those of one run of the daemon.

    Args:
        servers: How many the configuration names.
    """

    servers: int
    failed: int = attrs.field(default=0, init=False)
    """Since it was up last."""
    _untried: dict[Server, int] = attrs.field(factory=dict, init=False)
    """Addresses that have had no turn."""
    _passed_over: int = attrs.field(default=0, init=False)
    """Servers in a row that were not found."""

    def found(self, server: Server, untried: int) -> None:
        """It has an address, and so many others that had no turn yet."""
        # Their turns begin anew while another server's last: what was tried once is tried.
        self._untried[server] = min(untried, self._untried.get(server, untried))
        self._passed_over = 0

    def not_found(self, server: Server) -> None:
        """There is no way to it now."""
        self.failed += 1
        self._untried[server] = 0

    def may_pass_over(self) -> bool:
        """Whether the daemon may be told to take the next server, which it then is.

        One whose servers are all passed over, and again, ends: "No usable connection profiles are
        present".
        """
        if self._passed_over >= self.servers - 1:
            return False
        self._passed_over += 1
        return True

    @property
    def are_over(self) -> bool:
        """Whether each server was tried, at each of its addresses, or enough of them."""
        if self.failed < self.servers:
            return False
        return self.failed >= max(self.servers, MAX_ATTEMPTS) or not any(self._untried.values())
