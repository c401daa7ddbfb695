"""What a VMM's owner tells the back ends of its devices about a pause.

Over vhost-user a pause and a driver's reset look alike (see `microvm.virtio.vhost_user.session`).
Whoever gives the VMM the order to pause knows which it will be.
"""

from __future__ import annotations

import attrs


@attrs.define(eq=False)
class PauseNotice:
    """Shared by the back ends of one VMM and whoever pauses it. For the trio thread.

    Announce the pause before the VMM hears of it. Withdraw it before the VMM is told to go on, or
    when it has refused: a run that is ended after that is ended by its driver.
    """

    announced: bool = False
    """Whether a run that is ended now goes on after the pause."""

    def announce(self) -> None:
        """The VMM will be paused now. Again is allowed."""
        self.announced = True

    def withdraw(self) -> None:
        """The pause is over, or has failed. Again is allowed."""
        self.announced = False
