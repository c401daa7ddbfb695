"""How a machine ends: by itself, or since the host wants it to, which then asks in stages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs
import trio

from microvm.errors import GuestError, GuestGone, MicrovmError
from microvm.outcome import MachineOutcome, OutcomeReason

if TYPE_CHECKING:
    from microvm.abc import Guest, RunningMachine

log = logging.getLogger("microvm")

OUTCOME_GRACE_S: Final = 1.0
"""How long a command that lost its guest waits to learn how the machine ended. The agent's
stream breaks a moment before the platform knows."""

STOP_GRACE_S: Final = 3.0
"""How long `stop` gives the guest to end itself. The agent gives commands one second of it."""

BUTTON_GRACE_S: Final = 5.0
"""How long `stop` then gives a guest whose power button was pressed: its init does all there is."""

PRESS_WITHIN_S: Final = 0.5
"""How long the pressing itself may take: a worker that does not listen can't press."""


class MachineEnd:
    """The end of one machine. It comes once, and stays as it came."""

    def __init__(self) -> None:
        self.outcome: MachineOutcome | None = None
        """How it ended, or None while it runs."""
        self.wanted = False
        """The host wants it: an end by a crash is no news then."""
        self._came = trio.Event()
        self._guest_agreed = False
        self._one_stop = trio.Lock()
        """Several may ask for the end at once, and the guest is asked by one of them."""

    def come(self, outcome: MachineOutcome) -> None:
        """It is here. The first is right."""
        if self.outcome is None:
            self.outcome = outcome
            self._came.set()

    async def wait(self) -> MachineOutcome:
        """Wait for it."""
        await self._came.wait()
        assert self.outcome is not None
        return self.outcome

    async def wait_a_little(self) -> MachineOutcome | None:
        """Wait for it if it seems near, because the guest has gone; None if it is not."""
        with trio.move_on_after(OUTCOME_GRACE_S):
            await self._came.wait()
        return self.outcome

    async def watch(self, running: RunningMachine) -> None:
        """Take it from the platform, in a task of its own."""
        ended = await running.wait()
        if self._guest_agreed and ended.reason is OutcomeReason.RESET:
            # Without ACPI a guest's only way to end its machine is a reset; this one was asked to.
            ended = attrs.evolve(
                ended, reason=OutcomeReason.POWERED_OFF, detail="The guest shut down when asked."
            )
        self.come(ended)
        if ended.reason is OutcomeReason.CRASHED and not self.wanted:
            log.warning("%s", ended.detail)

    async def explain(self, error: GuestGone, running: RunningMachine) -> GuestGone:
        """The same error with the end in it, if it comes, or else the last console lines."""
        outcome = await self.wait_a_little()
        if outcome is None:
            return GuestGone(error.message, console=running.console_tail())
        return GuestGone(f"{error.message} {outcome.detail}", console=outcome.console_tail)

    async def bring_about(
        self,
        running: RunningMachine,
        guest: Callable[[], Guest | None],
        paused: Callable[[], bool],
        *,
        has_button: bool,
    ) -> MachineOutcome:
        """Bring it about in the stages of `Machine.stop`; one caller at a time.

        Args:
            running: The machine.
            guest: Who is asked first, if it is there.
            paused: Whether the guest stands still now, and can't hear.
            has_button: Whether the machine has a power button.
        """
        async with self._one_stop:
            self.wanted = True
            if self.outcome is None and not paused():
                with trio.move_on_after(STOP_GRACE_S):
                    await self._ask(guest())
            if self.outcome is None and not paused() and has_button:
                with trio.move_on_after(BUTTON_GRACE_S):
                    await self._press_button(running)
            if self.outcome is None:
                await running.kill()
            return await self.wait()

    async def _ask(self, guest: Guest | None) -> None:
        if guest is None:
            return
        try:
            await guest.shutdown()
        except GuestError:
            return  # a guest that can't be asked is ended by other means
        self._guest_agreed = True
        await self._came.wait()

    async def _press_button(self, running: RunningMachine) -> None:
        try:
            with trio.move_on_after(PRESS_WITHIN_S) as bound:
                await running.press_power_button()
        except MicrovmError as error:
            log.warning("The power button could not be pressed: %s", error)
            return
        if bound.cancelled_caught:
            return
        self._guest_agreed = True
        await self._came.wait()
