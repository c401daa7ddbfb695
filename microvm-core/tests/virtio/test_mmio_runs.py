"""From DRIVER_OK to reset: the hand-over, the one rendezvous, and what a fault does.

Rows 13, 29 and 33 of the hazard catalogue, and what is expected of all: the bit, the interrupt,
silence, and recovery by a reset.
"""

import struct
import threading
from functools import partial

import pytest
import trio

from microvm._loop_calls import LoopCalls
from microvm.testing.flipping import flipping
from microvm.testing.mmio_bench import MEMORY_BYTES, Bench, UpperDevice, build, served
from microvm.testing.mmio_driver import on_cpu
from microvm.virtio.mmio import registers


async def start(bench: Bench) -> None:
    runs = bench.device.diary.count("run")
    await on_cpu(bench.driver.initialize, [queue.layout for queue in bench.queues])
    await bench.device.until("run", runs + 1)


async def ask(bench: Bench, question: bytes = b"abc") -> bytes:
    queue = bench.queues[0]
    queue.add([question], [64])
    await on_cpu(bench.driver.notify, 0)
    return await answer_to(bench)


async def answer_to(bench: Bench) -> bytes:
    while not (used := bench.queues[0].used()):  # noqa: ASYNC110 - the answer is in memory
        await trio.sleep(0.001)
    return used[0].data


async def test_a_driver_is_served_and_interrupted() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        assert await ask(bench) == b"ABC"
        await bench.irq.wait()
        assert await on_cpu(bench.driver.take_interrupt) == registers.INTERRUPT_USED_BUFFER


async def test_what_was_offered_before_the_device_ran_is_served_without_a_doorbell() -> None:
    async with served(UpperDevice()) as bench:
        bench.queues[0].add([b"early"], [64])
        await start(bench)
        assert await answer_to(bench) == b"EARLY"


async def test_a_driver_that_was_there_before_the_loop_waits_for_it() -> None:
    """Before, the device's lifespan has not begun: it may not know its configuration space yet."""
    bench = build(UpperDevice(), calls=LoopCalls())
    initialize = partial(bench.driver.initialize, [bench.queues[0].layout])
    vcpu = threading.Thread(target=initialize, daemon=True)
    vcpu.start()
    vcpu.join(0.05)
    assert vcpu.is_alive()
    assert bench.driver.status == 0
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.transport.serve)
        bench.calls.attach(trio.lowlevel.current_trio_token())
        await trio.to_thread.run_sync(vcpu.join)
        assert await ask(bench) == b"ABC"
        nursery.cancel_scope.cancel()


async def test_a_driver_that_waits_for_a_loop_that_never_comes_is_let_go() -> None:
    bench = build(UpperDevice(), calls=LoopCalls())
    vcpu = threading.Thread(target=bench.driver.write, args=(registers.STATUS, 1), daemon=True)
    vcpu.start()
    bench.calls.close()
    await trio.to_thread.run_sync(vcpu.join)


async def test_a_reset_returns_when_the_run_has_ended_and_not_before() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        bench.device.end_takes_s = 0.05
        await on_cpu(bench.driver.reset)
        assert not bench.device.running
        assert bench.device.diary == ["reset", "run", "end"]
        assert bench.driver.status == 0
        assert bench.driver.read(registers.QUEUE_READY) == 0


async def test_after_a_reset_nothing_interrupts_and_no_memory_is_written() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        activation = bench.device.activation
        await on_cpu(bench.driver.reset)
        triggers = bench.irq.triggers
        activation.queues[0].irq.trigger()
        assert bench.irq.triggers == triggers
        assert bench.driver.read(registers.INTERRUPT_STATUS) == 0
        with pytest.raises(ValueError, match="released"):
            activation.queues[0].queue.pop()


async def test_a_run_tells_of_a_change_of_the_configuration_until_it_is_over() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        config_changed = bench.device.activation.config_changed
        before = bench.driver.read(registers.CONFIG_GENERATION)
        config_changed()
        assert bench.irq.triggers == 1
        assert bench.driver.read(registers.CONFIG_GENERATION) != before
        assert await on_cpu(bench.driver.take_interrupt) == registers.INTERRUPT_CONFIG_CHANGE
        await on_cpu(bench.driver.reset)
        config_changed()
        assert bench.irq.triggers == 1
        assert bench.driver.read(registers.INTERRUPT_STATUS) == 0


async def test_a_driver_begins_anew_after_each_of_many_resets() -> None:
    async with served(UpperDevice()) as bench:
        for _ in range(200):
            bench.queues[0].restart()
            await start(bench)
            assert await ask(bench) == b"ABC"
            await on_cpu(bench.driver.reset)
        assert bench.device.diary == ["reset", "run", "end"] * 200


async def test_two_cpus_that_reset_at_once_both_return() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        bench.device.end_takes_s = 0.02
        lock = threading.Lock()  # the bus holds the range's

        def reset() -> None:
            with lock:
                bench.driver.reset()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(on_cpu, reset)
                nursery.start_soon(on_cpu, reset)
        assert bench.device.diary == ["reset", "run", "end"]


async def test_a_device_that_interrupts_while_it_is_reset_does_not_deadlock() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        irq = bench.device.activation.queues[0].irq
        stop = trio.Event()

        async def interrupt() -> None:
            while not stop.is_set():
                irq.trigger()
                await trio.lowlevel.checkpoint()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupt)
                await on_cpu(bench.driver.reset)
                stop.set()


async def test_a_machine_that_ends_lets_go_of_a_cpu_that_waits_for_a_reset() -> None:
    bench_ended = trio.Event()

    async def wait_for_reset(bench: Bench) -> None:
        await on_cpu(bench.driver.reset)
        bench_ended.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            async with served(UpperDevice()) as bench:
                await start(bench)
                bench.device.end_takes_s = 0.05
                nursery.start_soon(wait_for_reset, bench)
                await trio.sleep(0.01)
            bench.calls.close()
            await bench_ended.wait()


async def test_a_reset_that_comes_while_the_machine_ends_waits_for_the_run_too() -> None:
    left_running = []

    async def drive(bench: Bench) -> None:
        await trio.sleep(0.02)  # the transport is on its way out by now
        await on_cpu(bench.driver.reset)
        left_running.append(bench.device.running)
        await on_cpu(bench.driver.initialize, [bench.queues[0].layout])

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery, served(UpperDevice()) as bench:
            await start(bench)
            bench.device.end_takes_s = 0.1
            nursery.start_soon(drive, bench)
    assert left_running == [False]
    assert bench.device.diary == ["reset", "run", "end", "reset"]


async def test_a_driver_that_is_ready_just_as_the_machine_ends_is_not_served() -> None:
    for _ in range(50):
        async with served(UpperDevice()) as bench:
            await on_cpu(bench.driver.initialize, [bench.queues[0].layout])
        assert not bench.device.running


async def test_a_driver_that_breaks_a_rule_is_told_to_reset_and_then_served_again() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        bench.queues[0].add([b"no room for an answer"])
        await on_cpu(bench.driver.notify, 0)
        await bench.irq.wait()
        assert bench.driver.status == 15 | 0x40
        assert bench.driver.take_interrupt() & registers.INTERRUPT_CONFIG_CHANGE
        # Silence: the device looks at nothing of this driver's any more.
        bench.queues[0].add([b"more"], [64])
        await on_cpu(bench.driver.notify, 0)
        await trio.sleep(0.02)
        assert bench.queues[0].used() == []
        bench.queues[0].restart()
        await start(bench)
        assert bench.driver.status == 15
        assert await ask(bench) == b"ABC"


@pytest.mark.parametrize("first", range(5))
async def test_29_rings_rewritten_while_the_device_is_at_them_cost_a_reset_at_most(first) -> None:
    async with served(UpperDevice()) as bench:
        queue = bench.queues[0]
        pack = struct.Struct("<QIHH").pack
        good = pack(0x8000, 8, 1, 1)
        variants = [
            good,
            pack(1 << 63, 0xFFFF_FFFF, 3, 0xFFFF),
            pack(0x9000, 32, 4, 0),
            pack(0x9000, 0, 0, 0),
            pack(MEMORY_BYTES - 4, 4, 2, 0),
        ]
        variants = variants[first:] + variants[:first]
        bench.memory.write(0x9000, good + pack(0x8000, 8, 2, 0))
        outcomes = set()
        for round_ in range(12):
            queue.restart()
            await start(bench)
            queue.write_descriptor(0, 0x8000, 8, 1, 1)
            queue.write_descriptor(1, 0x8100, 8, 2)
            queue.offer(0)
            used = bench.memory.load_u16(queue.layout.used + 2)
            # The bench's doorbell is heard on this thread, and the device's steps are traced on it.
            with flipping(bench.memory, queue.layout.desc, variants[round_ % 5 :] + variants):
                bench.driver.notify(0)
                with trio.fail_after(5):
                    while bench.driver.status == 15 and used == bench.memory.load_u16(
                        queue.layout.used + 2
                    ):
                        await trio.lowlevel.checkpoint()
            outcomes.add(bench.driver.status)
        assert outcomes <= {15, 15 | 0x40}
        await on_cpu(bench.driver.reset)
        queue.restart()
        await start(bench)
        assert await ask(bench) == b"ABC"


async def test_a_fault_is_logged_once_and_after_ten_no_more(caplog) -> None:
    async with served(UpperDevice()) as bench:
        for _ in range(14):
            bench.queues[0].restart()
            await start(bench)
            bench.queues[0].add([b"no room"])
            await on_cpu(bench.driver.notify, 0)
            while not bench.driver.status & 0x40:  # noqa: ASYNC110 - a register
                await trio.sleep(0.001)
    faults = [record for record in caplog.records if "rests until" in record.message]
    assert len(faults) == 10
    assert "no more" in faults[-1].message or "not logged" in faults[-1].message


async def test_a_driver_that_takes_a_queue_back_finds_the_device_quiet() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)

        def take_back() -> None:
            bench.driver.write(registers.QUEUE_SEL, 0)
            bench.driver.write(registers.QUEUE_READY, 0)

        await on_cpu(take_back)
        assert not bench.device.running
        assert bench.driver.read(registers.QUEUE_READY) == 0


async def test_a_pause_keeps_the_queues_and_what_was_rung_meanwhile() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
        assert await ask(bench, b"before") == b"BEFORE"
        await bench.transport.quiesce()
        assert not bench.device.running
        bench.queues[0].add([b"meanwhile"], [64])
        await trio.sleep(0.01)
        assert bench.queues[0].used() == []
        bench.transport.resume()
        assert await answer_to(bench) == b"MEANWHILE"
        assert bench.device.diary == ["reset", "run", "end", "run"]


async def test_a_resume_without_a_pause_begins_no_second_run() -> None:
    async with served(UpperDevice()) as bench:
        await on_cpu(bench.driver.negotiate)
        bench.driver.set_queue(0, bench.queues[0].layout)
        bench.driver.status = 15  # on this thread: its run begins later
        bench.transport.resume()
        assert await ask(bench) == b"ABC"
    assert bench.device.diary == ["reset", "run", "end", "reset"]


async def test_the_end_tells_the_device_to_forget_its_guest() -> None:
    async with served(UpperDevice()) as bench:
        await start(bench)
    assert bench.device.diary == ["reset", "run", "end", "reset"]


async def test_a_bug_of_the_device_comes_out_of_serve_as_it_is() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with served(UpperDevice()) as bench:

            async def broken(activation) -> None:
                raise ZeroDivisionError

            bench.device.run = broken
            await on_cpu(bench.driver.initialize, [bench.queues[0].layout])
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)
