"""OpenVPN configurations: what is let through, what is refused and how that is told. Row 93."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.forwards import TcpAddress
from microvm_guest.openvpn import directives, words
from microvm_guest.openvpn.config import OpenVpnConfig, Remote, parse_config, read_config
from microvm_guest.openvpn.credentials import Credentials, parse_auth_file, read_auth_file
from microvm_guest.openvpn.effective import effective_config
from microvm_guest.openvpn.errors import VpnConfigError

SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0"
PLAIN = """\
client
remote vpn.example.com 443 tcp
auth-user-pass
<ca>
-----BEGIN CERTIFICATE-----
</ca>
"""


def nothing(name: str) -> bytes:
    raise FileNotFoundError(2, "No such file or directory")


def parse(text: str, **files: bytes) -> OpenVpnConfig:
    return parse_config(text, lambda name: files[name] if name in files else nothing(name))


def refused(text: str, **files: bytes) -> str:
    with pytest.raises(VpnConfigError) as caught:
        parse(text, **files)
    return str(caught.value)


def lines_of(config: OpenVpnConfig) -> list[str]:
    return effective_config(config, None).splitlines()


def test_a_plain_configuration_is_taken() -> None:
    config = parse(PLAIN)
    assert config.remotes == (Remote(host="vpn.example.com", port=443, proto="tcp"),)
    assert config.wants_password
    assert config.credentials is None
    assert lines_of(config)[-6:] == [
        "auth-user-pass",
        "client",
        "remote vpn.example.com 443 tcp",
        "<ca>",
        "-----BEGIN CERTIFICATE-----",
        "</ca>",
    ]


@pytest.mark.parametrize("name", sorted(directives.REFUSED))
def test_each_directive_that_is_refused_is_told_by_line_and_name(name: str) -> None:
    said = refused(f"{PLAIN}\n{name} /some/where with words\n")
    assert f"config line 8: {name!r} is not allowed." in said
    assert "some/where" not in said


@pytest.mark.parametrize(
    "line",
    [
        "management 127.0.0.1 7505",
        "management-client-user nobody",
        "management-of-tomorrow x",
        "a-directive-of-2.9 x",
        "--up /bin/sh",
        '"up" /bin/sh',
        "u\\p /bin/sh",
        "  up /bin/sh",
        "\tup\t/bin/sh",
        "setenv PATH /tmp",
        "setenv LD_PRELOAD /tmp/x.so",
        "<up>\n/bin/sh\n</up>",
        "<connection>\nremote a\nup /bin/sh\n</connection>",
        "<connection>\nremote a\nhttp-proxy evil 1\n</connection>",
        "dev tap0",
        "auth-user-pass stdin",
    ],
)
def test_no_spelling_gets_past_the_list(line: str) -> None:
    refused(PLAIN + line + "\n")


@given(st.text(alphabet=st.sampled_from("<>/updownca \t\"'\\#;\n-x1"), max_size=120))
def test_nothing_reaches_the_daemon_but_what_is_on_the_list(text: str) -> None:
    """Whatever is written: what the guest is given is our own lines and listed directives."""
    try:
        config = parse(PLAIN + text)
    except VpnConfigError:
        return
    for one in config.directives:
        assert one.name in directives.PASSED | directives.FILES | {"connection", "setenv"}
        assert one.inline is None or f"</{one.name}>" not in one.inline.split("\n")


def test_all_that_is_wrong_is_told_at_once() -> None:
    said = refused("plugin /x.so\nup /bin/sh\nca missing.crt\nremote a 99999\n")
    assert "line 1: 'plugin'" in said
    assert "line 2: 'up'" in said
    assert "line 3: The file of 'ca' can't be read: missing.crt: No such file" in said
    assert "no number from 1 to 65535" in said


@pytest.mark.parametrize(
    "text",
    [
        f"<key>\n{SECRET}\n",
        f"<key>\n</key>\n{SECRET}\n",
        f"key {SECRET * 12}\n",
        f"setenv UV_X\nsetenv {SECRET} {SECRET}\n",
        f"password-{SECRET}! x\n",
        f'auth-user-pass "{SECRET}\n',
        f"<auth-user-pass>\n\n{SECRET}\n</auth-user-pass>\n",
    ],
)
def test_no_error_tells_what_may_be_a_secret(text: str) -> None:
    """A key whose block has lost its first line is read as directives, one a line."""
    assert SECRET not in refused(PLAIN + text).replace(f"{SECRET!r} is not allowed", "")


def test_what_means_nothing_here_is_passed_over_and_told() -> None:
    config = parse(
        PLAIN + "user nobody\npersist-tun\nblock-outside-dns\nsetenv opt no-such-thing\n"
    )
    assert [line.split(":")[0] for line in config.left_out] == [
        "user", "persist-tun", "block-outside-dns", "no-such-thing"
    ]  # fmt: skip
    assert not {"user", "persist-tun"} & {one.name for one in config.directives}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["ping 10", "ping-exit 60"], ["ping 10", "ping-restart 60"]),
        (["ping-exit 30", "ping-exit 0"], ["ping-restart 0"]),
        (["ping-exit 60", "ping 10", "ping-restart 30"], ["ping 10", "ping-restart 30"]),
        (["keepalive 10 60", "ping-exit 60"], ["keepalive 10 60"]),
        (["ping-exit"], []),
    ],
)
def test_a_silent_server_is_a_reason_to_connect_anew_and_none_to_end(
    lines: list[str], told: list[str]
) -> None:
    config = parse(PLAIN + "\n".join((*lines, "")))
    kept = [line for line in lines_of(config) if line.startswith(("ping", "keepalive"))]
    assert kept == told
    assert "ping-exit: microvm decides how to try again" in config.left_out


def test_a_server_can_not_have_it_end_when_it_is_silent_either() -> None:
    assert 'pull-filter ignore "ping-exit"' in lines_of(parse(PLAIN))


def test_files_are_read_here_and_travel_inline(tmp_path: Path) -> None:
    pkcs12, key = bytes(range(256)), "-----BEGIN OpenVPN Static key V1-----\nabc\n"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "me.p12").write_bytes(pkcs12)
    (tmp_path / "ta.key").write_text(key)
    (tmp_path / "pass").write_text("me\nsecret\n")
    path = tmp_path / "c.ovpn"
    path.write_text(
        "\ufeffclient\r\nremote a\r\npkcs12 sub/me.p12\r\ntls-auth 'ta.key' 1\r\n"
        "auth-user-pass pass # mine\r\n"
    )
    config = read_config(path)
    text = effective_config(config, None)
    assert f"<tls-auth>\n{key}</tls-auth>\nkey-direction 1\n" in text
    inside = text.partition("<pkcs12>\n")[2].partition("</pkcs12>")[0]
    assert base64.b64decode(inside) == pkcs12
    assert config.credentials == Credentials("me", "secret")
    assert "secret" not in text
    assert "secret" not in repr(config)
    assert "abc" not in repr(config)


def test_a_file_can_not_end_its_own_block() -> None:
    hostile = b"x\n</ca>\nup /bin/sh\n<ca>\n"
    assert "is not of its kind" in refused("client\nremote a\nca f\n", f=hostile)


def test_a_files_size_is_bounded() -> None:
    assert "more than 1 MiB" in refused("client\nremote a\nca f\n", f=b"x" * (2 << 20))


def test_connections_in_blocks_are_counted_with_their_own_ports_and_others_are_none() -> None:
    """OpenVPN does not go to a server in a line of its own, if there is one in a block."""
    config = parse(
        "client\nproto udp\nauth-user-pass\n<connection>\nremote a\nport 53\n</connection>\n"
        "<connection>\nremote b 443 tcp\n</connection>\nremote c\n<ca>\n</ca>\n"
    )
    assert config.remotes == (
        Remote(host="a", port=53, proto="udp"),
        Remote(host="b", port=443, proto="tcp"),
    )
    assert config.left_out == ("remote c: OpenVPN goes to the servers in <connection> alone",)


@pytest.mark.parametrize(
    ("block", "remote"),
    [
        ("remote a 443\nport 53", Remote(host="a", port=53, proto="tcp")),
        ("port 53\nremote a 443 udp", Remote(host="a", port=443, proto="udp")),
        ("remote a 443 udp\nremote b", Remote(host="b", port=443, proto="udp")),
        ("remote a\nproto udp", Remote(host="a", port=1195, proto="udp")),
        ("port 53", None),
    ],
)
def test_a_block_is_one_server_and_its_last_words_count(block: str, remote: Remote | None) -> None:
    """As OpenVPN has it, which asks for just that; what stands outside stays as it was."""
    config = parse(
        "client\nauth-user-pass\nproto tcp\nport 1195\nremote z\n<ca>\n</ca>\n"
        f"<connection>\n{block}\n</connection>\n<connection>\nremote y\n</connection>\n"
    )
    last = Remote(host="y", port=1195, proto="tcp")
    assert config.remotes == ((last,) if remote is None else (remote, last))


@pytest.mark.parametrize("host", ["a,b", '"a b"', "a\x1b[2Jb", "a\u202eb"])
def test_what_can_be_no_server_is_none(host: str) -> None:
    said = refused(f"client\nremote {host}\n<ca>\n</ca>\n")
    assert "what can be no server" in said
    assert said.isprintable() or "\n" in said


@pytest.mark.parametrize("port", ["0", "65536", "0655351", "-1", "443x", "\u0664\u0664\u0663", ""])
def test_a_port_is_a_number_from_1_to_65535(port: str) -> None:
    said = refused(PLAIN.replace(" 443 ", f' "{port}" '))
    assert "The port of a 'remote' is no number from 1 to 65535." in said


@pytest.mark.parametrize("port", [1, 65535])
def test_each_such_number_is_a_port(port: int) -> None:
    assert parse(PLAIN.replace(" 443 ", f" {port} ")).remotes[0].port == port


def test_a_configuration_without_a_server_or_without_its_ca_is_none() -> None:
    assert "There is no server" in refused("client\n<ca>\n</ca>\n")
    assert "how to know the server" in refused("client\nremote a\n")


@pytest.mark.parametrize("own", [("auth-user-pass",), ("cert", "key"), ("pkcs12",)])
def test_a_configuration_says_who_one_is(own: tuple[str, ...]) -> None:
    without = "client\nremote a\n<ca>\n</ca>\n"
    assert "It does not say who you are" in refused(without)
    parse(without + "".join(f"<{name}>\na\nb\n</{name}>\n" for name in own))


def test_the_daemon_is_told_our_own_lines_first() -> None:
    lines = effective_config(parse(PLAIN), TcpAddress(port=1082)).splitlines()
    assert lines[0] == "management /run/microvm-vpn/management unix"
    assert {"management-client", "management-hold", "management-query-passwords"} <= set(lines)
    assert "script-security 1" in lines
    assert "route-noexec" in lines
    assert "socks-proxy 127.0.0.1 1082" in lines
    assert "explicit-exit-notify 1" in lines, "or a server by UDP never learns that we left"
    assert "persist-tun" not in lines
    own = lines_of(parse(PLAIN + "explicit-exit-notify 3\n"))
    assert [line for line in own if "exit-notify" in line] == ["explicit-exit-notify 3"]


@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\r\n\0"), max_size=20), min_size=1, max_size=8
    )
)
def test_words_survive_being_written_and_read(given_words: list[str]) -> None:
    assert words.split(words.join(tuple(given_words))) == given_words


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ("a # b", ["a"]),
        (";a", []),
        ("a#b", ["a#b"]),
        ('a \'b c\' "d \\" e"', ["a", "b c", 'd " e']),
        ("a b\\ c", ["a", "b c"]),
        ("a ''", ["a", ""]),
        ("'a'b", ["a", "b"]),
        ('a"b', ['a"b']),
        ("a\vb\fc\r", ["a", "b", "c"]),
        ("a \\ b", ["a", "b"]),
        ("a \\# b", ["a"]),
    ],
)
def test_a_line_is_read_as_openvpn_reads_it(line: str, wanted: list[str]) -> None:
    assert words.split(line) == wanted


@pytest.mark.parametrize("line", ["'a", '"a', "a\\", " ".join("a" * 17)])
def test_a_line_that_can_not_be_read_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"a quote|a backslash|more than"):
        words.split(line)


def test_a_file_of_credentials(tmp_path: Path) -> None:
    assert parse_auth_file("me\npass word\n") == Credentials("me", "pass word")
    assert parse_auth_file("me\np\nphrase") == Credentials("me", "p", key_passphrase="phrase")
    assert parse_auth_file("\n\nphrase\n") == Credentials(key_passphrase="phrase")
    for wrong in ("", "me", "\np", "\np\n\n"):
        with pytest.raises(VpnConfigError, match="first line"):
            parse_auth_file(wrong)
    with pytest.raises(VpnConfigError, match="can't be read"):
        read_auth_file(tmp_path / "none")
    kept = tmp_path / "auth"  # as editors leave it
    kept.write_bytes("\ufeffme\r\npass\x85\u2028 word\r\n".encode())
    assert read_auth_file(kept) == Credentials("me", "pass\x85\u2028 word")
    kept.write_bytes(b"me\n\n")
    assert read_auth_file(kept) == Credentials("me", "")
    kept.write_bytes(b"me\n\xff\n")
    with pytest.raises(VpnConfigError, match="UTF-8"):
        read_auth_file(kept)


def test_credentials_are_not_shown_and_fit_in_one_line() -> None:
    shown = repr(Credentials("me", "hush", key_passphrase="quiet"))
    assert "hush" not in shown
    assert "quiet" not in shown
    with pytest.raises(VpnConfigError, match="line end"):
        Credentials("me", "a\nsignal SIGTERM")
