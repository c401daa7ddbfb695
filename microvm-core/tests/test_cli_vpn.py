"""``microvm vpn run``: what it says of a VPN, and what it refuses before anything boots."""

import pytest

from microvm.cli import main
from microvm.cli.vpn import _bytes, _sentence
from microvm_guest.openvpn import VpnReason, VpnState, VpnStatus


def test_a_line_says_how_the_vpn_is() -> None:
    connecting = VpnStatus(state=VpnState.CONNECTING, server="a:1194")
    assert _sentence(connecting) == "VPN connecting at a:1194"
    up = VpnStatus(state=VpnState.CONNECTED, server="a:1", local_ip="10.8.0.2", dns=("10.8.0.1",))
    assert _sentence(up) == "VPN connected to a:1, 10.8.0.2"
    nameless = VpnStatus(state=VpnState.CONNECTED, server="a:1", local_ip="10.8.0.2")
    assert _sentence(nameless).endswith("no name server (--dns gives one)")
    failed = VpnStatus(state=VpnState.FAILED, reason=VpnReason.AUTH_FAILED, detail="Refused.")
    assert _sentence(failed) == "VPN failed. Refused."


def test_what_guest_and_server_say_can_not_write_to_the_terminal() -> None:
    said = "\x1b]0;x\x07\u202e"
    hostile = VpnStatus(state=VpnState.FAILED, server=said, local_ip=said, dns=(), detail=said)
    assert _sentence(hostile).isprintable()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000_000_000, "2000.0 GB")],
)
def test_counts_are_read_at_a_glance(count: int, text: str) -> None:
    assert _bytes(count) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.ovpn"], "missing.ovpn can't be read"),
        (["c.ovpn", "--socks", "nowhere"], "--socks takes ADDR:PORT"),
        (["c.ovpn", "--auth-file", "none"], "none can't be read"),
        (["bad.ovpn"], "bad.ovpn line 3: 'plugin' is not allowed."),
        (["out.ovpn"], "out.ovpn line 3: The file of 'cert' is not read: /etc/hostname: it is out"),
        (["out.ovpn", "--allow-files", "--auth-file", "none"], "none can't be read"),
    ],
)
def test_what_can_not_work_is_told_before_anything_boots(
    words: list[str],
    said: str,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    good = "client\nremote a\n<ca>\n</ca>\nauth-user-pass\n"
    (tmp_path / "c.ovpn").write_text(good)
    (tmp_path / "out.ovpn").write_text(good.replace("<ca>", "cert /etc/hostname\n<ca>"))
    (tmp_path / "bad.ovpn").write_text(good.replace("<ca>", "plugin x.so\n<ca>"))
    assert main(["vpn", "run", *words]) == 125
    assert said in capsys.readouterr().err
