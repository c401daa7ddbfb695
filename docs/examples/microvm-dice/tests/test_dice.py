"""The device as a guest's driver sees it, and the plugin as core does."""

import random
from collections.abc import Awaitable, Callable

import microvm_dice.plugin
import pytest
import trio
from microvm_dice.device import MAX_ANSWER_BYTES, DiceDevice

from microvm.errors import ConfigError, QueueError
from microvm.testing.plugins import plugin_manager
from microvm.testing.queue_driver import QueueDriver, activation


def with_device(seed: int, test: Callable[[QueueDriver], Awaitable[None]]) -> None:
    """Run `test` on a driver of a running device."""

    async def main() -> None:
        driver = QueueDriver()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(DiceDevice(seed=seed).run, activation(driver))
                await test(driver)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def ask(driver: QueueDriver, *lengths: int) -> bytes:
    driver.add([], lengths)
    driver.kick()
    buffers = driver.used()
    while not buffers:
        driver.want_interrupt()
        buffers = driver.used()
        if not buffers:
            await driver.irq.wait()
            buffers = driver.used()
    return b"".join(buffer.data for buffer in buffers)


def test_the_same_seed_gives_the_same_bytes_however_the_buffers_are_cut() -> None:
    async def test(driver: QueueDriver) -> None:
        expected = random.Random(7)
        assert await ask(driver, 16) == expected.randbytes(16)
        assert await ask(driver, 1, 15, 16) == expected.randbytes(32)

    with_device(7, test)


def test_a_huge_buffer_is_filled_in_part() -> None:
    async def test(driver: QueueDriver) -> None:
        assert len(await ask(driver, 1 << 20)) == MAX_ANSWER_BYTES

    with_device(1, test)


def test_more_requests_than_the_queue_is_long_are_all_answered() -> None:
    async def test(driver: QueueDriver) -> None:
        for _ in range(3 * driver.size):
            assert len(await ask(driver, 8)) == 8

    with_device(1, test)


def test_a_request_with_readable_buffers_breaks_the_drivers_contract() -> None:
    async def test(driver: QueueDriver) -> None:
        driver.add([b"not a question"], [8])
        driver.kick()
        await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        with_device(1, test)
    assert caught.group_contains(QueueError)


def test_the_plugin_offers_the_device() -> None:
    manager = plugin_manager(plugins={"device/dice": microvm_dice.plugin})
    factory = manager.load_device("dice")
    assert factory.virtio_id == 4
    assert factory.create({"seed": 3}).device_id == 4


def test_options_that_it_does_not_know_are_all_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        microvm_dice.plugin.create({"sides": 6, "seed": "x", "colour": "red"})
    assert [problem.where for problem in caught.value.problems] == ["colour", "sides", "seed"]
