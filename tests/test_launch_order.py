"""What `microvm run` does before the platform's process is launched must stay light.

QEMU comes up while trio and the rest are imported; an import that moves to before the launch
makes every boot longer by its whole length, and nothing else would show it.
"""

import subprocess
import sys
from pathlib import Path

from microvm.testing.boot_files import tiny_kernel

PROGRAM = """
import sys
from microvm._assembly import assemble
from microvm.config import BootSource, MachineConfig
from microvm.plugins import installed_plugins
from microvm.timeline import BootTimeline
config = MachineConfig(boot=BootSource(kernel=sys.argv[1]))
plan = assemble(config, installed_plugins(), BootTimeline())
import microvm_qemu._platform, microvm_qemu._process
print(*sys.modules)
"""


def test_nothing_before_the_launch_imports_trio_or_the_agents_client(tmp_path: Path) -> None:
    kernel = tiny_kernel(tmp_path / "kernel")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(kernel)], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "microvm_devices.vsock.device" in modules
    assert "microvm_guest.provisioners.agent" in modules
    assert not modules & {
        "trio",
        "microvm_devices.vsock.muxer",
        "microvm_guest.client",
        "microvm_guest.protocol",
    }
