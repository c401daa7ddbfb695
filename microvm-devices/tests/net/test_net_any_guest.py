"""Any guest: whatever a driver puts into its queues, the host's process lives and stays small.

Rows 46, 48 and 50, those marked F: chains of any buffers with any bytes, on every queue at once.
"""

import tracemalloc

import trio
import trio.testing
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from microvm.abc import Offload
from microvm.errors import GuestError
from microvm.virtio.device_run import leaves
from microvm_devices.net.device import NetDevice
from microvm_devices.net.packet import HEADER_BYTES
from microvm_devices.net.testing import MAC, PEER, NetDriver, ScriptedNet, ethernet, settings

MAX_HOST_BYTES = 8 << 20

PIECE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([bytes(12), bytes(12) + ethernet(bytes(50)), bytes(70_000), b"\xff" * 26]),
)
CHAIN = st.tuples(
    st.integers(0, 4),
    st.lists(PIECE, max_size=4),
    st.lists(st.sampled_from([0, 1, 11, 12, 13, 60, 1530, 4096, 70_000]), max_size=4),
    st.booleans(),
).filter(lambda chain: bool(chain[1] or chain[2]))
FEATURES = st.integers(0, (1 << 24) - 1)
FRAMES = st.lists(st.integers(0, 3000), max_size=10)


def rest(error: BaseException) -> list[BaseException]:
    """What is not the guest's fault."""
    if isinstance(error, BaseExceptionGroup):
        others = error.split(GuestError)[1]
        return [] if others is None else list(leaves(others))
    return [] if isinstance(error, GuestError) else [error]


@given(
    features=FEATURES,
    chains=st.lists(CHAIN, max_size=30),
    frames=FRAMES,
    vnet_header=st.booleans(),
)
@how(max_examples=150, deadline=None)
def test_row_46_48_50_any_chains_on_any_queue_do_no_harm(
    features: int,
    chains: list[tuple[int, list[bytes], list[int], bool]],
    frames: list[int],
    vnet_header: bool,
) -> None:
    offloads = Offload.CSUM | Offload.TSO4 if vnet_header else Offload(0)
    net = ScriptedNet(vnet_header=vnet_header, offloads=offloads, links=2)
    device = NetDevice(net, settings(queues=2))
    driver = NetDriver(features, pairs=2, size=64)
    head = bytes(HEADER_BYTES) if vnet_header else b""
    for index, length in enumerate(frames):
        frame = head + ethernet(bytes(length), source=PEER, to=MAC)
        net.links[index % 2].give(frame)

    async def serve() -> None:
        try:
            await driver.drive(device)
        except BaseException as error:
            if rest(error):
                raise

    async def check() -> None:
        async with device.lifespan(), trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number, readable, writable, indirect in chains:
                queue = driver.queues[number % len(driver.queues)]
                if queue.free_descriptors >= len(readable) + len(writable):
                    queue.add(readable, writable, indirect=indirect)
                    queue.kick()
                await trio.lowlevel.checkpoint()
            with trio.fail_after(5):
                await trio.testing.wait_all_tasks_blocked()
            # Checks that each was in flight, and that no more is said to be written than fits.
            for queue in driver.queues:
                queue.used()
            nursery.cancel_scope.cancel()

    tracemalloc.start()
    try:
        trio.run(check)
        assert tracemalloc.get_traced_memory()[1] < MAX_HOST_BYTES
    finally:
        tracemalloc.stop()
