"""Runs `async def` tests under trio, each with a bound, so that a hang is a failure with a name."""

import functools
import inspect
import os
import signal

import pytest
import trio

pytest.register_assert_rewrite("microvm.testing.virtio_contract")

ASYNC_TEST_BOUND_S = 600 if os.environ.get("MICROVM_LAB") else 90
"""Below pytest's `faulthandler_timeout`, so that the test's own name comes first; in the lab, whose
CPU is one in software, above it: tracebacks are printed there, and the test may go on."""

SOAKING = bool({"MICROVM_NET_MIB", "MICROVM_VPN_MIB"} & os.environ.keys())
SOAK_TIMES = 20
"""How much longer a test marked `soak` may take when it is told how much to carry: a gibibyte takes
a guest under QEMU a minute one way and six the other."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and programs under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test to its end on a trio loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = functools.partial(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})

    soaks = SOAKING and pyfuncitem.get_closest_marker("soak") is not None

    async def bounded() -> None:
        with trio.fail_after(ASYNC_TEST_BOUND_S * (SOAK_TIMES if soaks else 1)):
            await test()

    trio.run(bounded)
    return True
