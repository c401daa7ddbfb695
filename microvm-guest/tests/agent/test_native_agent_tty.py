"""Commands with a terminal, run by the real agent."""

import trio

from microvm.abc import TtySize


async def read_until(stream, end):
    data = b""
    while not data.endswith(end):
        piece = await stream.receive_some()
        assert piece, f"the output ended after {data!r}"
        data += piece
    return data


async def test_a_terminal_has_the_size_asked_for_and_echoes(agent):
    async with (
        agent.client() as client,
        client.spawn(["sh", "-c", "stty size; cat"], tty=TtySize(rows=10, cols=20)) as process,
    ):
        assert await read_until(process.stdout, b"\n") == b"10 20\r\n"
        await process.stdin.send_all(b"hi\n")
        assert await read_until(process.stdout, b"hi\r\nhi\r\n") == b"hi\r\nhi\r\n"


async def test_a_resize_is_seen_and_signalled(agent):
    text = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"
    async with (
        agent.client() as client,
        client.spawn(["sh", "-c", text], tty=TtySize(rows=10, cols=20)) as process,
    ):
        await read_until(process.stdout, b"ready\r\n")
        await process.resize(TtySize(rows=50, cols=132))
        assert await read_until(process.stdout, b"\n") == b"50 132\r\n"


async def test_both_outputs_come_as_one_and_stderr_is_empty(agent):
    async with (
        agent.client() as client,
        client.spawn(["sh", "-c", "echo a; echo b >&2"], tty=TtySize()) as process,
    ):
        assert await process.stderr.receive_some() == b""
        assert await read_until(process.stdout, b"b\r\n") == b"a\r\nb\r\n"
        assert await process.stdout.receive_some() == b""
        assert (await process.wait()).success


async def test_output_is_complete_though_the_command_ends_at_once(agent):
    async with (
        agent.client() as client,
        client.spawn(["sh", "-c", "seq 20000"], tty=TtySize()) as process,
    ):
        printed = b""
        async for piece in process.stdout:
            printed += piece
        assert printed.split() == [b"%d" % number for number in range(1, 20001)]


async def test_the_end_of_stdin_is_the_terminals_end_of_file(agent):
    async with agent.client() as client:
        for text in (b"", b"whole line\n", b"part of a line"):
            async with client.spawn(["cat"], tty=TtySize()) as process:
                if text:
                    await process.stdin.send_all(text)
                await process.stdin.aclose()
                printed = b""
                async for piece in process.stdout:
                    printed += piece
                assert printed.count(text.strip()) >= 1
                assert (await process.wait()).exit_code == 0


async def test_control_c_is_a_signal_to_the_foreground(agent):
    text = "echo ready; exec sleep 1000"  # dash loses a SIGINT that meets its vfork
    async with (
        agent.client() as client,
        client.spawn(["sh", "-c", text], tty=TtySize()) as process,
    ):
        await read_until(process.stdout, b"ready\r\n")
        await process.stdin.send_all(b"\x03")
        assert (await process.wait()).signal == 2


async def test_it_is_the_controlling_terminal_and_has_a_type(agent):
    async with (
        agent.client() as client,
        client.spawn(["sh", "-c", "echo $TERM >/dev/tty; tty"], tty=TtySize()) as process,
    ):
        printed = b""
        async for piece in process.stdout:
            printed += piece
        kind, name = printed.split()
        assert kind == b"xterm"
        assert name.startswith(b"/dev/pts/")


async def test_a_terminal_left_to_a_background_process_does_not_hold_up_the_end(agent):
    async with agent.client() as client:
        with trio.fail_after(30):
            text = "trap '' HUP; sleep 1000 & echo $!"
            async with client.spawn(["sh", "-c", text], tty=TtySize()) as process:
                left = int(await read_until(process.stdout, b"\n"))
                assert (await process.wait()).success
            await client.run(["sh", "-c", f"kill -9 {left}"])
