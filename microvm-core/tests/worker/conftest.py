"""A backend that a worker process finds as it finds any: by the metadata of a distribution."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from microvm import BootSource, DeviceConfig, Machine, MachineConfig
from microvm._discovery import discover, installed_distributions
from microvm._plugin_manager import PluginManager
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census

METADATA = "Metadata-Version: 2.1\nName: microvm-rig\nVersion: 1\n"
ENTRY_POINTS = """\
[microvm.backends]
rig = microvm_rig:backend
[microvm.devices]
diary = microvm_rig:device
"""


@attrs.define(kw_only=True)
class Rig:
    """Machines on the installed backend, in worker processes unless told otherwise."""

    folder: Path
    plugins: PluginManager

    @property
    def path(self) -> list[str]:
        """What must be on `sys.path` for the backend to be found."""
        return [str(self.folder / "site"), str(Path(__file__).parent / "installed")]

    def config(self, script: str = "idle", **fields: Any) -> MachineConfig:
        fields.setdefault("boot", BootSource(kernel=tiny_kernel(self.folder / "kernel")))
        fields.setdefault("provisioners", ())
        fields.setdefault("vsock", None)
        fields.setdefault("isolation", "process")
        options = {"script": script, **fields.pop("options", {})}
        return MachineConfig(backend="rig", backend_options=options, **fields)

    def machine(self, script: str = "idle", **fields: Any) -> Machine:
        return Machine(self.config(script, **fields), plugins=self.plugins)

    def diary(self) -> DeviceConfig:
        """A device that writes "entered" and "left" into the folder `diary`."""
        (self.folder / "diary").mkdir(exist_ok=True)
        return DeviceConfig(name="diary", options={"folder": self.folder / "diary"})


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    info = tmp_path / "site" / "microvm_rig-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "installed"))
    yield Rig(folder=tmp_path, plugins=PluginManager(discover(installed_distributions())))
    sys.modules.pop("microvm_rig", None)


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Descriptors, threads and child processes are as many after the test as before."""
    before = Census.take()
    yield
    assert Census.take() == before
