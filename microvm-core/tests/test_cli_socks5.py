"""``microvm socks5``: where it is told to listen."""

import pytest

from microvm import ConfigError
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
