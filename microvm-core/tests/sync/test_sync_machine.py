"""`microvm.sync` on a scripted machine: what each call does, and from how many threads."""

import asyncio
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from microvm import ConfigError, GuestError, GuestGone, OutcomeReason, TtySize
from microvm.errors import PluginMissing
from microvm.forwards import TcpAddress
from microvm.outcome import MachineOutcome
from microvm.sync._loop import background_loop
from microvm.testing.census import Census


def test_a_command_runs_and_the_machine_is_gone_after_the_block(rig):
    with rig.machine() as machine:
        assert machine.run(["echo", "hello"]).stdout == b"hello"
        assert machine.outcome is None
        assert rig.platform.live == 1
    assert rig.platform.live == 0
    assert machine.outcome.reason is OutcomeReason.STOPPED


def test_what_it_is_can_be_read(rig):
    with rig.machine(mem_size_mib=256) as machine:
        machine.wait_ready()
        rig.platform.machines[0].say("booted")
        assert machine.backend.name == "scripted"
        assert "spawn" in machine.timing
        assert machine.console_tail == ("booted",)
        assert machine.exit_counts == {}
        assert machine.config.mem_size_mib == 256


def test_the_guest_has_its_own_verbs(rig):
    with rig.machine() as machine:
        guest = machine.wait_ready()
        assert guest.ping() == 0.5
        assert guest.status() == {"pid": 1}
        assert guest.run(["echo", "x"]).stdout == b"x"
        with pytest.raises(GuestError, match="It does not"):
            guest.shutdown()
        with hello(rig), guest.connect_to(TcpAddress(port=80)) as sock:
            assert sock.recv(5) == b"hello"


def test_errors_are_those_of_the_async_call_bare(rig):
    with rig.machine() as machine, pytest.raises(GuestError, match="did not start 'nope'"):
        machine.run(["nope"])
    assert rig.platform.live == 0


def test_what_a_machine_can_not_be_is_told_on_entry(rig):
    with pytest.raises(PluginMissing, match="nobody"), rig.machine(provisioners=("nobody",)):
        pass
    assert rig.platform.machines == []


def test_a_machine_is_entered_once_and_used_within_its_block(rig):
    machine = rig.machine()
    with pytest.raises(RuntimeError, match="with Machine"):
        machine.run(["echo"])
    assert machine.outcome is None
    with machine, pytest.raises(RuntimeError, match="entered once"), machine:
        pass
    with pytest.raises(RuntimeError, match="entered once"), machine:
        pass


def test_the_bodys_error_comes_out_as_it_is(rig):
    with pytest.raises(KeyError, match="mine"), rig.machine():
        raise KeyError("mine")
    assert rig.platform.live == 0


def test_an_error_of_a_lost_guest_tells_how_the_machine_ended(rig, on_loop):
    with rig.machine() as machine:
        guest = machine.wait_ready()._guest
        end = MachineOutcome(reason=OutcomeReason.PANIC, detail="Its kernel panicked.")
        with pytest.raises(GuestGone, match="Its kernel panicked"), machine.spawn(["cat"]):
            on_loop(rig.platform.machines[0].end, end)
            guest.gone = GuestGone("The connection broke.")
            machine.wait_ready().run(["echo"])
        assert machine.wait().reason is OutcomeReason.PANIC


def test_pause_resume_stop_and_wait(rig):
    with rig.machine() as machine:
        machine.pause()
        assert rig.platform.machines[0].paused
        machine.resume()
        assert not rig.platform.machines[0].paused
        assert machine.stop().reason is OutcomeReason.STOPPED
        assert machine.wait() == machine.outcome == machine.stop()


# --- streams ---------------------------------------------------------------------------------


def test_a_commands_streams_are_binary_files(rig):
    with rig.machine() as machine, machine.spawn(["cat"]) as process:
        assert process.stdin.write(b"one\ntwo\n") == 8
        assert process.stdout.readline() == b"one\n"
        process.stdin.write(bytearray(b"three\nrest"))
        process.stdin.close()
        assert list(process.stdout) == [b"two\n", b"three\n", b"rest"]
        assert process.stderr.read() == b""
        assert process.wait().exit_code == 0
        with pytest.raises(ValueError, match="closed"):
            process.stdin.write(b"x")


def test_they_may_be_read_as_text(rig):
    with rig.machine() as machine, machine.spawn(["cat"]) as process:
        process.stdin.write("größer\n".encode())
        process.stdin.close()
        assert io.TextIOWrapper(process.stdout, encoding="utf-8").read() == "größer\n"


def test_signals_and_sizes_reach_the_command(rig):
    with rig.machine() as machine, machine.spawn(["cat"], tty=TtySize()) as process:
        process.resize(TtySize(rows=50, cols=120))
        process.send_signal(15)
        assert process.wait().signal == 15
        assert rig.guest.processes[0].sizes == [TtySize(rows=50, cols=120)]


def test_files_are_read_and_written_whole_or_as_they_come(rig):
    with rig.machine() as machine:
        machine.files.write_text("/a", "größer")
        assert machine.files.read_bytes("/a") == "größer".encode()
        with machine.files.open_write("/b") as file:
            assert file.write(b"one\n") == 4
            file.write(b"two")
        with machine.files.open_read("/b") as file:
            assert list(file) == [b"one\n", b"two"]
        with pytest.raises(FileNotFoundError, match="/c"):
            machine.wait_ready().files.read_text("/c")


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GuestError])
def test_a_file_whose_block_is_left_by_an_error_is_not_made(rig, error):
    """Half of it must not be taken for the whole."""
    with rig.machine() as machine:
        with pytest.raises(error, match="mine"), machine.files.open_write("/a") as file:
            file.write(b"half")
            raise error("mine")
        assert rig.guest.files.contents == {}


@contextmanager
def hello(rig, port=5000):
    """Something in the guest that says hello to who connects, then echoes."""

    async def serve():
        stream = await listener.accept()
        await stream.send_all(b"hello")
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    listener = rig.channels.guest.listen(port)
    background_loop().soon(serve)
    yield
    background_loop().call(listener.aclose)


def test_a_port_is_a_blocking_socket(rig):
    with rig.machine() as machine:
        machine.wait_ready()
        with hello(rig), machine.connect(5000) as sock:
            assert isinstance(sock, socket.socket)
            assert sock.gettimeout() is None
            assert sock.recv(5) == b"hello"
            sock.sendall(b"x" * 100_000)
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                assert len(file.read()) == 100_000


def test_a_guests_calls_are_accepted_as_sockets(rig):
    async def call():
        stream = await rig.channels.guest.connect(9000)
        await stream.send_all(b"ring")
        await stream.send_eof()

    with rig.machine() as machine:
        machine.wait_ready()
        with machine.listen(9000) as listener:
            background_loop().soon(call)
            with listener.accept() as sock:
                assert sock.recv(9) == b"ring"
            background_loop().soon(call)
            for sock in listener:
                sock.close()
                break
            with pytest.raises(ConfigError):
                machine.listen(9000)
        machine.listen(9000).close()


def test_forwards_need_no_thread_of_the_callers(rig):
    with rig.machine() as machine:
        machine.wait_ready()
        with hello(rig), machine.forward(guest_port=80) as forward:
            assert forward.target == TcpAddress(port=80)
            address = (forward.address.host, forward.address.port)
            with socket.create_connection(address, timeout=30) as sock:
                assert sock.recv(5) == b"hello"
                assert forward.connections == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        forward.close()
        with machine.expose(port=1, vsock_port=7000) as exposed:
            assert str(exposed.address) == "vsock:7000"
            assert "127.0.0.1:1" in repr(exposed)


# --- threads ---------------------------------------------------------------------------------


def test_several_threads_use_one_machine_and_several_machines(rig):
    with rig.machine() as machine, ThreadPoolExecutor(8) as pool:

        def work(number):
            if number % 10 == 0:
                with rig.machine() as own:
                    return own.run(["echo", str(number)]).stdout
            return machine.run(["echo", str(number)]).stdout

        assert list(pool.map(work, range(100))) == [str(n).encode() for n in range(100)]
    assert rig.platform.live == 0


def test_one_threads_long_call_does_not_hold_up_another(rig, on_loop):
    with rig.machine() as machine, ThreadPoolExecutor(1) as pool:
        machine.wait_ready()
        sleeping = pool.submit(machine.run, ["sleep"])
        background_loop().call(rig.guest.sleeping.wait)
        assert machine.run(["echo", "x"]).stdout == b"x"
        assert not sleeping.done()
        on_loop(rig.guest.woken.set)
        assert sleeping.result(30).exit_code == 0


def test_it_works_beside_a_running_asyncio_loop(rig):
    """As in a notebook: blocking, on the very thread that runs asyncio."""

    async def cell():
        with rig.machine() as machine:
            here = machine.run(["echo", "here"]).stdout
            there = await asyncio.to_thread(machine.run, ["echo", "there"])
        return here, there.stdout

    assert asyncio.run(cell()) == (b"here", b"there")


def test_the_loops_own_thread_is_told_that_it_would_wait_for_itself(rig):
    with rig.machine() as machine:
        machine.wait_ready()

        async def callback():
            return machine.run(["echo"])

        with pytest.raises(RuntimeError, match="callbacks"):
            background_loop().call(callback)


def test_machines_leave_nothing_but_the_one_loop(rig):
    with rig.machine() as machine:
        machine.wait_ready()
    before = Census.take()
    for _ in range(3):
        with rig.machine() as machine, machine.spawn(["cat"]) as process:
            process.stdin.write(b"x")
    assert Census.take() == before
    assert [t.name for t in threading.enumerate()].count("microvm-sync") == 1
