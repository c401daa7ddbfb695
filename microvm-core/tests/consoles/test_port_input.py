"""What is typed for a serial port: all of it, in order, as fast as the guest reads."""

import threading

import trio
from trio.testing import wait_all_tasks_blocked

from microvm.consoles.port_input import PENDING_BYTES, PortInput
from microvm.legacy.uart8250 import FCR, FCR_ENABLE, IER, IER_ERBFI, LSR, LSR_DR, RBR, Uart8250


class Irq:
    def trigger(self) -> None:
        pass


def port(post) -> tuple[PortInput, Uart8250]:
    typed = PortInput(post)
    uart = Uart8250(lambda data: None, Irq(), typed.on_room)
    typed.connect(uart.feed)
    uart.write(IER, 1, IER_ERBFI)
    uart.write(FCR, 1, FCR_ENABLE)
    return typed, uart


def read_all(uart: Uart8250) -> bytes:
    got = bytearray()
    while uart.read(LSR, 1) & LSR_DR:
        got.append(uart.read(RBR, 1))
    return bytes(got)


async def test_more_than_the_port_holds_follows_as_it_is_read() -> None:
    typed, uart = port(lambda call: call())
    line = bytes(range(200))
    await typed.send(line)
    assert read_all(uart) == line
    await typed.send(b"next")
    assert read_all(uart) == b"next"


async def test_who_types_more_than_may_wait_waits_for_the_guest() -> None:
    typed, uart = port(lambda call: call())
    data = bytes(range(256)) * 64
    done = trio.Event()

    async def type_it() -> None:
        await typed.send(data)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(type_it)
        await wait_all_tasks_blocked()
        assert not done.is_set()
        assert len(typed._pending) <= PENDING_BYTES
        got = bytearray()
        while len(got) < len(data):
            got += read_all(uart)
            await wait_all_tasks_blocked()
        assert done.is_set()
    assert bytes(got) == data


async def test_several_who_wait_for_the_guest_do_not_keep_each_other_awake() -> None:
    typed, _ = port(trio.lowlevel.current_trio_token().run_sync_soon)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(typed.send, bytes(2 * PENDING_BYTES))
        with trio.fail_after(10):
            await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def test_one_that_stopped_waiting_leaves_the_port_to_others() -> None:
    typed, uart = port(lambda call: call())
    with trio.move_on_after(0.05):
        await typed.send(bytes(2 * PENDING_BYTES))
    got = len(read_all(uart))
    assert PENDING_BYTES <= got <= 2 * PENDING_BYTES
    await typed.send(b"other")
    assert read_all(uart) == b"other"


async def test_a_vcpu_that_reads_on_its_own_thread_gets_every_byte() -> None:
    token = trio.lowlevel.current_trio_token()
    typed, uart = port(token.run_sync_soon)
    data = bytes(range(256)) * 100
    got = bytearray()

    def vcpu() -> None:
        while len(got) < len(data):
            got.extend(read_all(uart))

    thread = threading.Thread(target=vcpu)
    thread.start()
    for begin in range(0, len(data), 300):
        await typed.send(data[begin : begin + 300])
    await trio.to_thread.run_sync(thread.join)
    assert bytes(got) == data
