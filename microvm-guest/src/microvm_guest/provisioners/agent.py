"""`AgentProvisioner`: a guest whose process 1 is our agent.

The agent dials the host's port 1024 when it is up, so nobody asks whether it is: the connection
that it makes is its readiness, and it is also the one over which it is used from then on.
"""

from __future__ import annotations

import string
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from microvm.abc import GuestChannels, GuestLink, Provisioner
from microvm.config import BootSource, MachineConfig
from microvm_guest.ports import HOST_PORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    import trio
    from trio.abc import HalfCloseableStream, Listener

    from microvm.abc import ImageFacts
    from microvm.host_clocks import ClockJump
    from microvm.timeline import BootTimeline
    from microvm_guest.client import AgentClient

# What needs trio is imported where it is used: a provisioner is made before the platform's
# process is launched, and the rest of the imports cost nothing while that and the guest start.


NOBODY_THERE: Final = ("null", "loopback")
"""Net backends with nobody at the other end who could give an address."""

SET_BACK_S: Final = 1.0
"""By how much the host's clock has to be set back for the guest's to follow: programs take less
harm from a clock that is a little ahead than from one that goes back."""


class AgentProvisioner(Provisioner):
    """Boots the image that `microvm image build` made, and speaks to the agent in it.

    It has no `needs`: its image is made with all that it takes, the vsock device it has in common
    with all provisioners, and of somebody else's kernel nobody knows anything.
    """

    def boot_source(self, config: MachineConfig) -> BootSource:
        """The default image's kernel and initrd; see `Provisioner.boot_source`."""
        from microvm_guest.image import default_image

        image = default_image()
        return BootSource(kernel=image.kernel, initrd=image.initrd)

    def image_facts(self, path: Path) -> ImageFacts | None:
        """What is on images and disks that `microvm image build` made."""
        from microvm_guest.image.facts import image_facts

        return image_facts(path)

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """Which disk the agent is to enter, and which networks to ask for an address.

        Core's own ``root=`` is not enough: a kernel that starts the agent's initramfs never heeds
        it, and the agent as process 1 of a container reads the host's.
        """
        letters = string.ascii_lowercase
        drives = zip(letters, config.drives, strict=False)
        words = [f"microvm.root=/dev/vd{letter}" for letter, drive in drives if drive.root]
        asked = [
            f"eth{index}"
            for index, net in enumerate(config.nets)
            if net.backend not in NOBODY_THERE
        ]
        return [*words, f"microvm.dhcp={','.join(asked)}"] if asked else words

    @asynccontextmanager
    async def attach(self, channels: GuestChannels) -> AsyncIterator[AgentLink]:
        """Listen for the agent; when the block is left, the client it became is closed."""
        import trio

        from microvm_guest._tasks import serving

        listener = channels.listen(HOST_PORT)
        try:
            async with serving() as nursery:
                yield AgentLink(listener, nursery, channels)
        finally:
            await trio.aclose_forcefully(listener)


class AgentLink(GuestLink):
    """The agent's half of a machine: waits for its call, and answers with a client.

    Args:
        listener: Takes the agent's call; closed once it has come.
        nursery: Serves the client.
        channels: To the same guest, for forwards.
    """

    def __init__(
        self,
        listener: Listener[HalfCloseableStream],
        nursery: trio.Nursery,
        channels: GuestChannels,
    ) -> None:
        self._listener = listener
        self._nursery = nursery
        self._channels = channels
        self._client: AgentClient | None = None

    async def wait_ready(self, timeline: BootTimeline) -> AgentClient:
        """Wait for the agent's call and greeting; to be called once.

        Raises:
            GuestProtocolError: what called is not an agent of this version.
            GuestGone: it hung up at once.
        """
        from microvm_guest.client import AgentClient

        stream = await self._listener.accept()
        timeline.mark("kernel")
        client = AgentClient(stream, self._channels)
        self._nursery.start_soon(client.serve)
        await self._listener.aclose()
        await client.wait_hello()
        timeline.mark("agent")
        self._client = client
        return client

    async def pausing(self) -> None:
        """Have the guest's disks written; see `GuestLink.pausing`."""
        if self._client is not None:
            await self._client.prepare_pause()

    async def clock_changed(self, jump: ClockJump) -> None:
        """Set the guest's clock right; see `GuestLink.clock_changed`."""
        if self._client is not None:
            await self._client.catch_up_clock(set_back=jump.set_by_s < -SET_BACK_S)
