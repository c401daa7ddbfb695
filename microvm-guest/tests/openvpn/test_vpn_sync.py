"""`microvm_guest.openvpn.sync`: a VPN without async, on a guest of Python's."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from microvm.errors import ConfigError
from microvm.sync import TooSlowError, fail_after
from microvm.testing.sync_surface import SyncPair
from microvm_guest.openvpn import (
    Challenge,
    Credentials,
    StateChanged,
    VpnConfigError,
    VpnFailed,
    VpnReason,
    VpnState,
)
from microvm_guest.openvpn.sync import OpenVpnTunnel
from microvm_guest.openvpn.tunnel import OpenVpnTunnel as AsyncOpenVpnTunnel

from .vpn_rig import VpnRig

ME = Credentials("me", "secret")


@pytest.fixture
def rig(tmp_path: Path) -> VpnRig:
    return VpnRig(tmp_path)


def test_it_has_the_names_and_arguments_of_the_async_one() -> None:
    SyncPair(
        AsyncOpenVpnTunnel,
        OpenVpnTunnel,
        # Of these the daemon's run tells it what happens.
        not_for_users={"publish", "show_bytes", "publish_log", "run_is_over"},
    ).check()


def test_importing_it_brings_no_trio() -> None:
    code = "import sys, microvm_guest.openvpn.sync; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tunnel_comes_up_and_ends_with_its_block(rig: VpnRig) -> None:
    with rig.machine() as machine, OpenVpnTunnel(machine, rig.config, ME, outbound=False) as vpn:
        with fail_after(30):
            status = vpn.wait_connected()
        assert (status.state, status.local_ip) == (VpnState.CONNECTED, "10.8.0.2")
        assert vpn.status == status
    assert vpn.status.state is VpnState.STOPPED
    assert rig.daemons[0].said[-1] == "signal SIGTERM", "it says goodbye"


def test_it_is_stopped_and_started_with_other_credentials(rig: VpnRig) -> None:
    with rig.machine() as machine, OpenVpnTunnel(machine, outbound=False) as vpn, fail_after(30):
        with pytest.raises(VpnFailed, match="not started"):
            vpn.wait_connected()
        vpn.start(rig.config, Credentials("me", "wrong"))
        with pytest.raises(VpnFailed) as caught:
            vpn.wait_connected()
        assert caught.value.reason is VpnReason.AUTH_FAILED
        assert vpn.wait_ended().state is VpnState.FAILED
        vpn.stop()
        vpn.start(rig.config, ME)
        with pytest.raises(ConfigError, match="running"):
            vpn.start(rig.config, ME)
        vpn.wait_connected()
        vpn.stop()
        vpn.stop()
        assert vpn.wait_ended().state is VpnState.STOPPED


def test_events_are_an_iterator_that_ends_with_the_block(rig: VpnRig) -> None:
    with rig.machine() as machine:
        states: list[VpnState] = []
        with OpenVpnTunnel(machine, outbound=False) as vpn, fail_after(30):
            events = vpn.events()

            def watch() -> None:
                for event in events:
                    assert isinstance(event, StateChanged)
                    states.append(event.status.state)

            watcher = threading.Thread(target=watch)
            watcher.start()
            vpn.start(rig.config, ME)
            vpn.wait_connected()
        watcher.join(30)
        assert not watcher.is_alive()
        assert states[0] is VpnState.STOPPED
        assert VpnState.CONNECTED in states
        assert states[-1] is VpnState.STOPPED
        assert events.lost == 0


def test_a_deadline_ends_the_wait_and_not_the_tunnel(tmp_path: Path) -> None:
    rig = VpnRig(tmp_path, question="Your code?")
    asked = threading.Event()
    goes_on = threading.Event()

    def answer(challenge: Challenge) -> str:
        asked.set()
        goes_on.wait(30)
        return "123456"

    rig.password = "SCRV1:"
    me = Credentials("me", "secret", answer=answer)
    with rig.machine() as machine, OpenVpnTunnel(machine, rig.config, me, outbound=False) as vpn:
        assert asked.wait(30)
        with pytest.raises(TooSlowError), fail_after(0.05):
            vpn.wait_connected()
        goes_on.set()
        with fail_after(30):
            vpn.wait_connected()


@pytest.mark.parametrize("plain", [True, False])
def test_a_question_is_put_to_a_plain_function_in_a_thread_or_to_an_async_one(
    tmp_path: Path, plain: bool
) -> None:
    rig = VpnRig(tmp_path, question="Your code?", password="SCRV1:")
    asked: list[tuple[Challenge, str]] = []

    def note(challenge: Challenge) -> str:
        asked.append((challenge, threading.current_thread().name))
        return "123456"

    async def note_async(challenge: Challenge) -> str:
        return note(challenge)

    me = Credentials("me", "secret", answer=note if plain else note_async)
    with (
        rig.machine() as machine,
        OpenVpnTunnel(machine, rig.config, me, outbound=False) as vpn,
        fail_after(30),
    ):
        vpn.wait_connected()
    ((challenge, thread),) = asked
    assert challenge == Challenge(text="Your code?", echo=True)
    assert (thread == "microvm-sync") is not plain


def test_what_can_not_be_is_told_on_entry_and_the_machine_goes_on(
    rig: VpnRig, tmp_path: Path
) -> None:
    with rig.machine() as machine:
        with (
            pytest.raises(VpnConfigError, match="can't be read"),
            OpenVpnTunnel(machine, tmp_path / "none.ovpn"),
        ):
            pass
        with pytest.raises(ConfigError, match="by address"):
            OpenVpnTunnel(machine, dns=["name.example"])
        with OpenVpnTunnel(machine, rig.config, ME, outbound=False) as vpn:
            with pytest.raises(RuntimeError, match="entered once"), vpn:
                pass
            with fail_after(30):
                vpn.wait_connected()


def test_the_blocks_error_comes_out_and_the_tunnel_is_gone(rig: VpnRig) -> None:
    with rig.machine() as machine:
        with (
            pytest.raises(KeyError, match="mine"),
            OpenVpnTunnel(machine, rig.config, ME, outbound=False) as vpn,
        ):
            raise KeyError("mine")
        assert vpn.status.state is VpnState.STOPPED
        with OpenVpnTunnel(machine, rig.config, ME, outbound=False) as vpn, fail_after(30):
            vpn.wait_connected()
