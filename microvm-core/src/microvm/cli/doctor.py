"""``microvm doctor``: whether machines run here, found out by running one."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from microvm.plugins import PluginManager

MARKS = {True: "ok  ", False: "FAIL", None: "--  "}


@attrs.frozen(kw_only=True)
class Check:
    """One line of the doctor's report."""

    name: str
    good: bool | None
    """None: only told, neither good nor bad."""
    finding: str
    remedy: str | None = None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="find out whether machines run here, and if not, why",
        description=(
            "Check plugins, backends and image, then boot a machine and run a command in it. "
            "Exits with 1 if that can't be done."
        ),
    )
    parser.add_argument("--backend", metavar="NAME", help="try this backend and no other")
    parser.add_argument("--no-boot", action="store_true", help="look only, boot nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print each check as it is made; returns 0 when all that matter are good."""
    checks: list[Check] = []
    for check in _examine(args):
        checks.append(check)
        if not args.json:
            print(f"{MARKS[check.good]} {check.name}: {check.finding}", flush=True)
            if check.remedy:
                print(f"     -> {check.remedy}", flush=True)
    healthy = all(check.good is not False for check in checks)
    if args.json:
        print(json.dumps({"healthy": healthy, "checks": [attrs.asdict(c) for c in checks]}))
    return 0 if healthy else 1


def _examine(args: argparse.Namespace) -> Iterator[Check]:
    import microvm
    from microvm.plugins import installed_plugins

    yield Check(
        name="microvm",
        good=None,
        finding=f"{microvm.__version__} on Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
    )
    plugins = installed_plugins()
    yield from _plugin_checks(plugins)
    yield from _backend_checks(plugins, args.backend)
    if not args.no_boot:
        yield _guarded("boot", lambda: _boot(args.backend))


def _guarded(name: str, step: Callable[[], str]) -> Check:
    from microvm.errors import MicrovmError

    try:
        return Check(name=name, good=True, finding=step())
    except MicrovmError as error:
        finding = "\n       ".join([error.message, *map(str, getattr(error, "problems", ()))])
        finding = "\n       | ".join([finding, *error.console])
        return Check(name=name, good=False, finding=finding, remedy=error.remedy)


def _plugin_checks(plugins: PluginManager) -> Iterator[Check]:
    for status in plugins.examine():
        yield Check(
            name=f"plugin {status.record.key}",
            good=None if status.state == "disabled" else status.state == "ok",
            finding=f"{status.record.origin}: {status.detail}",
        )


def _backend_checks(plugins: PluginManager, only: str | None) -> Iterator[Check]:
    usable = 0
    factories = [f for f in plugins.load_backends() if only in (None, f.name)]
    for factory in factories:
        report = factory.probe({})
        usable += report.usable
        facts = "".join(f"\n       {key}: {value}" for key, value in report.details.items())
        yield Check(
            name=f"backend {factory.name}",
            good=True if report.usable else None,
            finding=report.reason + facts,
            remedy=report.remedy,
        )
    if factories and not usable:
        yield Check(name="backends", good=False, finding="none can run here")
    elif not factories and only is not None:
        yield _guarded("backends", lambda: plugins.load_backend(only).summary)
    elif not factories:
        yield Check(
            name="backends",
            good=False,
            finding="none is installed",
            remedy="pip install 'microvm-core[host]'",
        )


def _boot(backend: str | None) -> str:
    """Boot a machine, run a command, say how long each took."""
    import trio

    from microvm._machine import Machine
    from microvm.config import MachineConfig

    async def attempt() -> str:
        async with Machine(MachineConfig(backend=backend)) as machine:
            result = await machine.run(["uname", "-srm"], check=True)
            ping_ms = await (await machine.wait_ready()).ping()
            phases = ", ".join(f"{name} {ms:.0f} ms" for name, ms in machine.timing.items())
            kernel = result.stdout.decode(errors="replace").strip()
            return f"{kernel} on {machine.backend.name} ({phases}; ping {ping_ms:.1f} ms)"

    return trio.run(attempt)
