import random

import microvm_dice.plugin
import pytest
import trio
from microvm_dice.device import MAX_ANSWER_BYTES, DiceDevice

from microvm.errors import ConfigError, QueueError
from microvm.testing.plugins import plugin_manager
from microvm.testing.queue_driver import QueueDriver, activation
from microvm.testing.vhost_user_frontend import front_end


async def ask(driver, *lengths):
    driver.add([], lengths)
    driver.kick()
    while not (buffers := driver.used()):
        if not driver.want_interrupt():
            await driver.irq.wait()
    return b"".join(buffer.data for buffer in buffers)


def test_the_same_seed_gives_the_same_bytes_however_the_buffers_are_cut():
    async def main():
        driver, expected = QueueDriver(), random.Random(7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(DiceDevice(seed=7).run, activation(driver))
            assert await ask(driver, 16) == expected.randbytes(16)
            assert await ask(driver, 1, 15, 16) == expected.randbytes(32)
            assert len(await ask(driver, 1 << 20)) == MAX_ANSWER_BYTES
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_request_with_something_to_read_is_the_drivers_fault():
    async def main():
        driver = QueueDriver()
        driver.add([b"not a request"], [8])
        await DiceDevice(seed=7).run(activation(driver))

    with pytest.raises(QueueError):
        trio.run(main)


def test_after_a_pause_it_goes_on_where_it_was():
    async def main():
        expected = random.Random(7)
        async with front_end(DiceDevice(seed=7), queues=1) as vmm:
            await vmm.start()
            (requests,) = vmm.queues
            assert await ask(requests, 2) == expected.randbytes(2)
            await vmm.stop()
            await vmm.start()
            assert await ask(requests, 5) == expected.randbytes(5)

    trio.run(main)


def test_the_plugin_makes_it_and_tells_all_that_is_wrong_with_its_options():
    factory = plugin_manager(plugins={"device/dice": microvm_dice.plugin}).load_device("dice")
    assert factory.create({"seed": 3}).device_id == factory.virtio_id
    with pytest.raises(ConfigError) as caught:
        factory.create({"sides": 6, "seed": "x", "colour": "red"})
    assert [problem.where for problem in caught.value.problems] == ["colour", "sides", "seed"]
