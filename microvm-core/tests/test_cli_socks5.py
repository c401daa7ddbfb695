"""``microvm socks5``: where it is told to listen, and the line that it keeps on a terminal."""

import io

import pytest

from microvm import ConfigError
from microvm.cli._status_line import StatusLine
from microvm.cli.socks5 import DEFAULT_LISTEN, parse_listen, read_login
from microvm.forwards import TcpAddress, UnixAddress


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (DEFAULT_LISTEN, TcpAddress(port=1080)),
        ("0", TcpAddress(port=0)),
        ("9050", TcpAddress(port=9050)),
        ("192.0.2.1:80", TcpAddress(host="192.0.2.1", port=80)),
        ("[::1]:80", TcpAddress(host="::1", port=80)),
        ("unix:/run/x y", UnixAddress(path="/run/x y")),
    ],
)
def test_where_to_listen_is_read(text, address):
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text", ["", "localhost:80", "::1:80", "1.2.3:80", "127.0.0.1:", "127.0.0.1:99999", "unix:"]
)
def test_what_is_no_place_is_told(text):
    with pytest.raises(ConfigError):
        parse_listen(text)


def test_a_login_is_the_first_two_lines_of_a_file(tmp_path):
    file = tmp_path / "login"
    file.write_text("joe\nsésame\n")
    assert read_login(str(file)) == ("joe", "sésame")
    for wrong in ("", "joe", "joe\n", "\nsésame\n"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="a name and a password") as caught:
            read_login(str(file))
        assert "sésame" not in str(caught.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_login(str(tmp_path / "missing"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_is_written_over():
    screen = Terminal()
    status = StatusLine(screen)
    status.show("one")
    status.show("one")
    status.show("two")
    status.clear()
    assert screen.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_a_line_can_command_the_terminal_nothing():
    screen = Terminal()
    StatusLine(screen).show("\x1b]0;x\x07\n\u202e")
    assert screen.getvalue() == "\r\x1b[K" + r"\x1b]0;x\x07\n\u202e"


def test_nothing_is_written_where_there_is_no_terminal():
    log = io.StringIO()
    StatusLine(log).show("one")
    StatusLine(None).show("one")
    assert log.getvalue() == ""
