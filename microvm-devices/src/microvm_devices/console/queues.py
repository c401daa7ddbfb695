"""What every queue of the console needs: the next chain, sooner or later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.errors import QueueError

if TYPE_CHECKING:
    from microvm.abc import ActiveQueue
    from microvm.virtio.chain import DescriptorChain


async def next_chain(active: ActiveQueue) -> DescriptorChain:
    """Wait for the driver's next chain; it is told of those used before, first.

    Raises:
        GuestError: the driver broke a rule.
    """
    queue = active.queue
    while (chain := queue.pop()) is None:
        active.notify()
        if not queue.enable_notification():
            await active.doorbell.wait()
        queue.disable_notification()
    return chain


async def next_buffer(active: ActiveQueue) -> DescriptorChain:
    """Wait for a chain that something can be written to.

    Raises:
        GuestError: the driver broke a rule.
    """
    chain = await next_chain(active)
    if not chain.writable_len:
        raise QueueError("A buffer to receive into has no device-writable bytes.")
    return chain
