"""`microvm vpn` against a real server: it connects, says what is wrong, and asks who is there."""

import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from tests.guest.openvpn.tunnels import ME, PAGE, config_file, needs_a_server
from tests.guest.vpn_server import VpnServer

pytestmark = needs_a_server


def test_the_command_connects_serves_and_ends_at_ctrl_c(udp: VpnServer, tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.write_text(f"{ME.username}\n{ME.password}\n")
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    words = ["vpn", "run", str(config_file(udp)), "--socks", address, "--auth-file", str(auth)]
    argv = [sys.executable, "-m", "microvm", *words, "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1].get("state") == "connected":
                break
        done = subprocess.run(
            ["curl", "-sS", "--socks5-hostname", address, PAGE], capture_output=True, check=False
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert udp.saw_the_client_leave()
    assert hashlib.sha256(done.stdout).hexdigest() == udp.digest, done.stderr
    assert [event["event"] for event in events][:2] == ["starting", "ready"]
    assert events[1]["listen"] == address


def test_the_command_says_what_is_wrong_and_ends(udp: VpnServer, tmp_path: Path, cli) -> None:
    auth = tmp_path / "auth"
    auth.write_text("me\nwrong\n")
    words = ["vpn", "run", str(config_file(udp)), "--socks", "127.0.0.1:0"]
    done = cli(*words, "--auth-file", str(auth))
    assert done.returncode == 1
    assert b"refused the user name or the password" in done.stderr
    (udp.folder / "client.ovpn").write_text("client\nremote x\nup /bin/sh\n<ca>\n</ca>\n")
    done = cli(*words)
    assert done.returncode == 125
    assert b"client.ovpn line 3: 'up' is not allowed." in done.stderr


@pytest.mark.slow
def test_a_servers_question_is_put_to_who_sits_at_the_terminal(udp: VpnServer) -> None:
    """Also where the configuration brings name and password itself."""
    udp.set_password("me", "SCRV1:cGFzcw==:MTIzNDU2")
    inline = "<auth-user-pass>\nme\npass\n</auth-user-pass>"
    config = str(config_file(udp, 'static-challenge "Your code?" 0', inline))
    argv = [sys.executable, "-m", "microvm", "vpn", "run", config, "--socks", "127.0.0.1:0"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, argv)
    before = termios.tcgetattr(terminal)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 4096)

    until(b"Your code? ")
    assert not termios.tcgetattr(terminal)[3] & termios.ECHO
    os.write(terminal, b"123456\r")
    until(b"VPN connected to ")
    assert termios.tcgetattr(terminal) == before
    os.write(terminal, b"\x03")
    with suppress(OSError):  # EIO: the other side has closed
        until(b"nothing that it says")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, shown
    os.close(terminal)
    assert b"123456" not in shown
