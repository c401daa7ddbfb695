"""`microvm console --port` and `microvm balloon` with our own devices, here or in a worker.

The guest is a script on a backend that a worker process finds as it finds any: its driver is the
double of `microvm_devices.console.testing`, in whatever process the devices are.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from microvm.testing.boot_files import tiny_kernel

BACKEND = """
import trio
from microvm.abc import Capability, ProbeReport
from microvm.plugins import BackendFactory, hookimpl
from microvm.testing.platform import ScriptedPlatform
from microvm_devices.console.testing import GuestConsole

AGENT = 1

async def guest(machine):
    console = machine.plan.devices[0].device
    driver = GuestConsole(console)
    async with driver.driving():
        await driver.set_up()
        while True:
            await driver.open(AGENT)
            said = await driver.read(AGENT, 5)
            await driver.print(said.upper(), AGENT)
            await driver.close(AGENT)

@hookimpl
def microvm_register_backend():
    return BackendFactory(
        name="echoes",
        summary="a guest that answers at its port",
        capabilities=frozenset({Capability.OWN_KERNEL, Capability.VIRTIO_DEVICES}),
        probe=lambda options: ProbeReport(backend="echoes", usable=True, reason="It is a script."),
        create=lambda options: ScriptedPlatform(guest),
    )
"""

PROGRAM = """
import sys, trio
from pathlib import Path
from microvm import BootSource, DeviceConfig, Machine, MachineConfig

async def main():
    config = MachineConfig(
        name="web-1", backend="echoes", isolation=sys.argv[2], provisioners=(), vsock=None,
        boot=BootSource(kernel=Path(sys.argv[1])),
        devices=[
            DeviceConfig(name="console", options={"ports": ["agent"]}),
            DeviceConfig(name="balloon"),
        ],
    )
    async with Machine(config) as machine:
        print("up", flush=True)
        await machine.wait()

trio.run(main)
"""


@pytest.fixture(params=["inline", "process"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A machine called web-1, and the environment in which it is found."""
    info = tmp_path / "site" / "echoes-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echoes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[microvm.backends]\nechoes = microvm_echoes\n")
    (tmp_path / "site" / "microvm_echoes.py").write_text(BACKEND)
    (tmp_path / "run").mkdir(mode=0o700)
    env = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PYTHONPATH": str(tmp_path / "site"),
    }
    kernel = str(tiny_kernel(tmp_path / "kernel"))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kernel, request.param],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "up\n"
            yield env
        finally:
            program.kill()


def microvm(
    env: dict[str, str], *words: str, stdin: str = "", code: int = 0
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "microvm", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert done.returncode == code, done.stderr
    return done


def test_a_named_port_is_talked_through(machine: dict[str, str]) -> None:
    """What is piped in arrives, the answer comes out, and the guest's closing ends it."""
    for said in ("hello", "again"):
        done = microvm(machine, "console", "web-1", "--port", "agent", stdin=said)
        assert (done.stdout, done.stderr) == (said.upper(), "")


def test_a_port_that_there_is_not_is_named_with_those_that_there_are(
    machine: dict[str, str],
) -> None:
    done = microvm(machine, "console", "web-1", "--port", "log", code=125)
    assert done.stderr == "microvm: This console has no port 'log'.\nIt has agent.\n"
    done = microvm(machine, "console", "web-1", "--port", "agent", "--device", "console7", code=125)
    assert "no device 'console7'; it has console0, balloon0." in done.stderr


def test_a_balloon_is_shown_and_set(machine: dict[str, str]) -> None:
    shown = microvm(machine, "balloon", "web-1").stdout
    assert shown == "asked for 0 MiB, has given 0 MiB\n"
    microvm(machine, "balloon", "web-1", "64")
    facts: Any = json.loads(microvm(machine, "balloon", "web-1", "--json").stdout)
    assert facts == {"target_mib": 64, "actual_mib": 0}
    done = microvm(machine, "balloon", "web-1", "--device", "console0", code=125)
    assert "has no command 'target'" in done.stderr


def test_a_balloon_of_no_size_is_refused(machine: dict[str, str]) -> None:
    assert "MiB can't be" in microvm(machine, "balloon", "web-1", "-1", code=125).stderr
    assert "invalid int value" in microvm(machine, "balloon", "web-1", "1.5", code=2).stderr
