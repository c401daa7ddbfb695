"""`OpenVpnTunnel` against a daemon that is a script: goodbyes, the way, and the host's clocks.

Long, since goodbyes, the way, floods and clocks are played on one rig of a few lines.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from microvm.errors import ConfigError, GuestError, GuestGone, GuestRefused
from microvm.host_clocks import ClockJump
from microvm_guest.openvpn import (
    Challenge,
    Credentials,
    OpenVpnTunnel,
    StateChanged,
    VpnFailed,
    VpnReason,
    VpnState,
)
from microvm_guest.openvpn.daemon_run import GIVEN_UP_AFTER_S, TERM_WITHIN_S

from .scripted_daemon import BROKEN, PARSED, REFUSED, RESTART, TERM, UP, Rig


def in_no_time(test: Callable[..., Awaitable[None]]) -> Any:
    """Run a test whose waits end as soon as nothing else happens."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        async def body() -> None:
            with trio.fail_after(600):
                await test(**fixtures)

        trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0.01))

    return run


def states(vpn: OpenVpnTunnel, seen: list[VpnState]) -> Callable[[], Awaitable[None]]:
    """A task that keeps each state that the tunnel comes into."""
    events = vpn.events()

    async def watch() -> None:
        async for event in events:
            if isinstance(event, StateChanged):
                seen.append(event.status.state)

    return watch


# --- goodbyes ----------------------------------------------------------------------------------


class LeftByAnError(Exception):
    pass


async def leave(how: str, scope: trio.CancelScope) -> None:
    if how == "by an error":
        raise LeftByAnError
    if how == "cancelled":
        scope.cancel()
        await trio.sleep_forever()


HOWS = ["at its end", "by an error", "cancelled"]


@pytest.mark.parametrize("how", HOWS)
@in_no_time
async def test_the_daemon_says_goodbye_however_the_block_is_left(how: str) -> None:
    rig = Rig()
    seen: list[VpnState] = []
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            try:
                async with rig.tunnel() as vpn:
                    nursery.start_soon(states(vpn, seen))
                    await rig.connect(vpn)
                    nursery.start_soon(rig.daemon.serve_signals)
                    await leave(how, scope)
            except LeftByAnError:
                assert how == "by an error"
        assert scope.cancelled_caught == (how == "cancelled")
    assert not rig.daemon.killed
    assert vpn.status.state is VpnState.STOPPED
    assert seen[-3:] == [VpnState.CONNECTED, VpnState.EXITING, VpnState.STOPPED]
    assert not rig.scripted.is_open
    assert rig.scripted.on_clock_change is None, "the machine may have another"


@pytest.mark.parametrize("how", HOWS)
@in_no_time
async def test_a_daemon_that_does_not_end_is_killed_when_its_time_is_up(how: str) -> None:
    rig = Rig()
    rig.daemon.obeys = False
    with trio.CancelScope() as scope:
        try:
            async with rig.tunnel() as vpn:
                await rig.connect(vpn)
                begin = trio.current_time()
                await leave(how, scope)
        except LeftByAnError:
            pass
    assert trio.current_time() - begin == pytest.approx(TERM_WITHIN_S)
    await rig.daemon.heard(TERM)
    assert rig.daemon.killed
    assert vpn.status.state is VpnState.STOPPED


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("state", ["paused", "ended"])
@in_no_time
async def test_a_guest_that_can_not_do_anything_is_not_waited_for(how: str, state: str) -> None:
    rig = Rig()
    with trio.CancelScope() as scope:
        try:
            async with rig.tunnel() as vpn:
                await rig.connect(vpn)
                begin = trio.current_time()
                rig.state = state
                rig.scripted.hangs = True
                await leave(how, scope)
        except LeftByAnError:
            pass
    assert trio.current_time() == begin
    assert rig.daemon.killed
    assert vpn.status.state is VpnState.STOPPED


@in_no_time
async def test_a_machine_that_is_cancelled_with_its_tunnel_is_not_waited_for() -> None:
    """Its connection to the agent is gone before it knows itself that it has ended."""
    rig = Rig()
    with trio.CancelScope() as scope:
        async with rig.tunnel() as vpn:
            await rig.connect(vpn)
            begin = trio.current_time()
            scope.cancel()
            gone = GuestGone("The connection to the guest's agent was closed by the host.")
            rig.daemon.end(gone)
            rig.scripted.fails = [gone]
            await trio.sleep_forever()
    assert trio.current_time() == begin


@in_no_time
async def test_one_that_is_cancelled_while_it_starts_leaves_nothing() -> None:
    rig = Rig()
    rig.spawn_hangs = True
    begin = trio.current_time()
    with trio.move_on_after(7) as scope:
        async with rig.tunnel():
            raise AssertionError
    assert scope.cancelled_caught
    assert trio.current_time() - begin == pytest.approx(7)
    rig.spawn_hangs = False
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        rig.daemon.end()
        await vpn.wait_ended()


@in_no_time
async def test_a_machine_has_one_tunnel_until_that_is_over() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        with pytest.raises(ConfigError, match="has a tunnel already"):
            async with rig.tunnel():
                raise AssertionError
        rig.daemon.end()
        await vpn.wait_ended()


@in_no_time
async def test_of_two_starts_at_once_the_second_is_refused_and_the_first_can_be_stopped() -> None:
    rig = Rig()
    refused: list[ConfigError] = []

    async def start() -> None:
        try:
            await vpn.start(PARSED, Credentials("me", "secret"))
        except ConfigError as error:
            refused.append(error)

    async with rig.tunnel(started=False) as vpn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            nursery.start_soon(start)
        (error,) = refused
        assert (error.message, error.remedy) == ("The tunnel is running.", "Stop it first.")
        await rig.connect(vpn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.daemon.serve_signals)
            await vpn.stop()
        assert vpn.status.state is VpnState.STOPPED
    assert not rig.daemon.killed


@in_no_time
async def test_of_two_tunnels_begun_at_once_the_first_goes_on_and_hears_of_the_clock() -> None:
    rig = Rig()
    refused: list[ConfigError] = []
    up = trio.Event()

    async def hold() -> None:
        try:
            async with rig.tunnel():
                up.set()
                await trio.sleep_forever()
        except ConfigError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        nursery.start_soon(hold)
        await up.wait()
        await trio.testing.wait_all_tasks_blocked()
        (error,) = refused
        assert error.message == "This machine has a tunnel already."
        await rig.daemon.connect()
        await rig.scripted.clock_changed(ClockJump(slept_s=3600.0, set_by_s=0.0))
        await rig.daemon.heard(RESTART)
        rig.daemon.end()
        nursery.cancel_scope.cancel()
    assert rig.scripted.on_clock_change is None


@in_no_time
async def test_a_tunnel_may_be_stopped_while_it_starts() -> None:
    rig = Rig()
    rig.spawn_hangs = True
    async with rig.tunnel(started=False) as vpn, trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(VpnFailed, match="stopped while it started"):
                await vpn.start(PARSED, Credentials("me", "secret"))

        nursery.start_soon(start)
        await trio.testing.wait_all_tasks_blocked()
        await vpn.stop()
    assert rig.scripted.on_clock_change is None


# --- its management ----------------------------------------------------------------------------


@in_no_time
async def test_the_managements_port_is_another_each_time_and_none_that_could_be_guessed() -> None:
    """Row 93. Any program in the guest may dial the host, and whoever comes first is the daemon."""
    seen = set()
    for _ in range(20):
        rig = Rig()
        async with rig.tunnel():
            seen.add(rig.daemon.management)
            assert list(rig.channels.listeners) == [rig.daemon.management]
            rig.daemon.end()
        assert not rig.channels.listeners
    assert len(seen) == 20
    assert all(1 << 31 <= port <= (1 << 32) - 2 for port in seen)


@in_no_time
async def test_nobody_is_let_in_behind_the_daemon() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        assert not rig.channels.listeners
        with pytest.raises(GuestRefused):
            await rig.channels.guest.connect(rig.daemon.management)
        rig.daemon.end()


# --- the way -----------------------------------------------------------------------------------


@in_no_time
async def test_a_way_that_can_not_be_opened_again_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The daemon is connected and content: nobody but us knows that it is to begin anew."""
    rig = Rig()
    async with rig.tunnel() as vpn, trio.open_nursery() as nursery:
        await rig.connect(vpn)
        for _ in range(3):
            rig.scripted.fails = [GuestError("The guest has no memory for that.")]
            await rig.daemon.say(BROKEN)
            await trio.testing.wait_all_tasks_blocked()
            rig.scripted.fails = [GuestError("The guest has no memory for that.")]
            begin = trio.current_time()
            await rig.daemon.say(*UP)
            await rig.daemon.heard(RESTART)
            assert trio.current_time() - begin >= 1, "and not in a circle"
            assert vpn.status.state is VpnState.RECONNECTING
        await rig.daemon.say(">STATE:5,RECONNECTING,SIGUSR1,,,,,", *UP)
        await vpn.wait_connected()
        assert rig.scripted.is_open
        nursery.start_soon(rig.daemon.serve_signals)
        await vpn.stop()
    assert "The way into the tunnel can't be opened: The guest has no memory" in caplog.text
    assert "The way out of the guest can't be shut: The guest has no memory" in caplog.text


@in_no_time
async def test_a_way_that_can_not_be_opened_at_first_is_a_failure_with_a_name() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        rig.scripted.fails = [GuestError("The guest's routes can't be set: 'no'")]
        await rig.daemon.connect()
        await rig.daemon.say(*UP)
        await rig.daemon.heard(TERM)
        rig.daemon.end()
        status = await vpn.wait_ended()
    assert (status.state, status.reason) == (VpnState.FAILED, VpnReason.PROTOCOL)
    assert "can't be set" in status.detail


@in_no_time
async def test_a_way_that_failed_with_a_connection_that_is_gone_is_nobodys_failure() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn, trio.open_nursery() as nursery:
        rig.scripted.fails = [GuestError("Cannot find device tun0")]
        await rig.daemon.connect()
        await rig.daemon.say(*UP)
        await rig.daemon.say(">STATE:5,RECONNECTING,SIGUSR1,,,,,", *UP)
        await vpn.wait_connected()
        assert (rig.scripted.opened, vpn.status.connects) == (1, 1)
        nursery.start_soon(rig.daemon.serve_signals)
        await vpn.stop()


@in_no_time
async def test_a_way_that_can_not_be_shut_ends_no_tunnel_and_is_shut_at_the_end() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        rig.scripted.fails = [GuestError("The guest is busy.")]
        await rig.daemon.say(BROKEN)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.scripted.is_open
        assert vpn.status.state is VpnState.RECONNECTING
        rig.daemon.end()
        await vpn.wait_ended()
        assert not rig.scripted.is_open


@pytest.mark.parametrize("asked", [True, False])
@in_no_time
async def test_the_way_is_shut_before_it_is_said_that_the_tunnel_has_ended(asked: bool) -> None:
    """The guest's resolv.conf, too: it would go on asking servers of the VPN's."""
    rig = Rig()
    async with rig.tunnel() as vpn, trio.open_nursery() as nursery:
        await rig.connect(vpn)
        assert rig.scripted.is_open
        if asked:
            nursery.start_soon(rig.daemon.serve_signals)
            nursery.start_soon(vpn.stop)
        else:
            rig.daemon.end()
        status = await vpn.wait_ended()
        assert not rig.scripted.is_open
    assert status.state is (VpnState.STOPPED if asked else VpnState.FAILED)


@pytest.mark.parametrize("line", [REFUSED, BROKEN])
@in_no_time
async def test_the_way_is_shut_before_it_is_said_that_the_tunnel_is_down(line: str) -> None:
    """Whoever hears it and connects is to be refused, not to knock where nobody is any more."""
    rig = Rig()
    rig.scripted.shutting_s = 1
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        await rig.daemon.say(line)
        async for event in vpn.events():
            assert isinstance(event, StateChanged)
            if event.status.state is not VpnState.CONNECTED:
                break
        assert not rig.scripted.is_open
        rig.daemon.end()


@in_no_time
async def test_a_guest_that_never_shuts_its_way_hides_no_failure() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        rig.scripted.hangs = True
        begin = trio.current_time()
        await rig.daemon.say(REFUSED)
        status = await vpn.wait_ended()
        assert trio.current_time() - begin == pytest.approx(TERM_WITHIN_S)
        rig.daemon.end()
    assert status.reason is VpnReason.AUTH_FAILED


@in_no_time
async def test_a_guest_that_never_shuts_its_way_holds_nobody() -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        rig.scripted.hangs = True
        begin = trio.current_time()
        rig.daemon.end()
        status = await vpn.wait_ended()
        assert trio.current_time() - begin == pytest.approx(TERM_WITHIN_S)
    assert status.reason is VpnReason.DAEMON_DIED


# --- floods ------------------------------------------------------------------------------------

ASKS = ">REMOTE:192.0.2.1,1194,udp"
FLOOD = (BROKEN, ">STATE:4,CONNECTING,,,,,,", ">STATE:5,AUTH,,,,,,")


async def flood(rig: Rig, vpn: OpenVpnTunnel, lines: tuple[str, ...], times: int) -> list[VpnState]:
    """The states that are told of meanwhile, and until nothing happens any more."""
    seen: list[VpnState] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(states(vpn, seen))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(times):
            await rig.daemon.say(*lines)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    return seen


@in_no_time
async def test_what_is_as_it_was_is_not_told_again(caplog: pytest.LogCaptureFixture) -> None:
    """Row 93, log flood."""
    caplog.set_level("INFO", "microvm.vpn")
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.daemon.connect()
        await rig.daemon.say(">STATE:1,AUTH,,,,,,", ASKS)
        await trio.testing.wait_all_tasks_blocked()
        caplog.clear()
        assert await flood(rig, vpn, (ASKS,), 1000) == [vpn.status.state]
        assert caplog.messages == []
        rig.daemon.end()


@in_no_time
async def test_a_flood_of_states_is_thinned_and_the_last_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Row 93, log flood."""
    caplog.set_level("INFO", "microvm.vpn")
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        caplog.clear()
        told = await flood(rig, vpn, FLOOD, 1000)
        assert len(told) < 200
        assert len(caplog.messages) < 200
        assert told[-1] is vpn.status.state is VpnState.RECONNECTING
        told = await flood(rig, vpn, (*FLOOD, *UP), 1000)
        assert len(told) < 200
        assert told[-1] is vpn.status.state is VpnState.CONNECTED
        rig.daemon.end()


@pytest.mark.parametrize("asked", [True, False])
@in_no_time
async def test_the_end_is_told_at_once_however_much_was_told_before(asked: bool) -> None:
    """Row 93, log flood."""
    rig = Rig()
    async with rig.tunnel() as vpn, trio.open_nursery() as nursery:
        await rig.connect(vpn)
        for _ in range(200):
            await rig.daemon.say(*FLOOD, *UP)
            await trio.testing.wait_all_tasks_blocked()
        begin = trio.current_time()
        if asked:
            nursery.start_soon(rig.daemon.serve_signals)
            await vpn.stop()
        else:
            rig.daemon.end()
        await vpn.wait_ended()
        assert trio.current_time() == begin
        nursery.cancel_scope.cancel()
    assert vpn.status.state is (VpnState.STOPPED if asked else VpnState.FAILED)


@in_no_time
async def test_a_guest_that_can_never_shut_its_way_floods_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    async with rig.tunnel() as vpn:
        await rig.connect(vpn)
        caplog.clear()
        for _ in range(1000):
            rig.scripted.fails = [GuestError("The guest is busy.")]
            await rig.daemon.say(BROKEN)
            await trio.testing.wait_all_tasks_blocked()
            await rig.daemon.say(*UP)
            await trio.testing.wait_all_tasks_blocked()
        assert len([one for one in caplog.messages if "can't be shut" in one]) <= 300
        rig.scripted.fails = []
        rig.daemon.end()


# --- clocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slept_s", "set_by_s", "anew"),
    [
        (0.0, 0.05, False),
        (0.0, -86400.0, False),
        (0.01, 0.0, False),
        (GIVEN_UP_AFTER_S - 0.1, 0.0, False),
        (GIVEN_UP_AFTER_S, 0.0, True),
        (3600.0, -1.0, True),
    ],
)
@in_no_time
async def test_only_a_guest_that_stood_still_for_long_connects_anew(
    slept_s: float, set_by_s: float, anew: bool
) -> None:
    rig = Rig()
    async with rig.tunnel() as vpn, trio.open_nursery() as nursery:
        await rig.connect(vpn)
        await rig.scripted.clock_changed(ClockJump(slept_s=slept_s, set_by_s=set_by_s))
        heard: list[str] = []

        async def listen() -> None:
            await rig.daemon.heard(RESTART)
            heard.append(RESTART)

        nursery.start_soon(listen)
        await trio.sleep(60)
        assert heard == ([RESTART] if anew else [])
        nursery.cancel_scope.cancel()
        rig.daemon.end()


@in_no_time
async def test_a_sleep_while_somebody_is_asked_for_a_code_is_not_told() -> None:
    """OpenVPN ends at any signal while it waits for a password, or for the way to a server."""
    rig = Rig()
    asked = trio.Event()

    async def answer(challenge: Challenge) -> str:
        asked.set()
        await trio.sleep(60)
        return "123456"

    machine: Any = rig
    me = Credentials("me", "secret", answer=answer)
    async with OpenVpnTunnel(machine, PARSED, me):
        await rig.daemon.connect()
        await rig.daemon.say(">PASSWORD:Need 'Auth' username/password SC:1,Code?")
        await asked.wait()
        await rig.scripted.clock_changed(ClockJump(slept_s=3600.0, set_by_s=0.0))
        before = await rig.daemon.heard('username "Auth" "me"')
        assert RESTART not in before
        rig.daemon.end()
