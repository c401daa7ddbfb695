"""Whether a machine can be in a worker process at all: what of it another process can't have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.config import ConfigProblem
from microvm.worker.order import option_problems
from microvm.worker.process import problems_here

if TYPE_CHECKING:
    from microvm.config import MachineConfig
    from microvm.plugins import PluginManager


def isolation_problems(
    config: MachineConfig, backend: str, plugins: PluginManager
) -> list[ConfigProblem]:
    """Every reason why this machine must stay in the process that describes it."""
    problems = [*problems_here(), *option_problems(config)]
    wanted = {
        f"backend/{backend}",
        *(f"device/{name}" for name in config.device_names()),
        *(f"net_backend/{net.backend}" for net in config.nets),
    }
    problems.extend(
        ConfigProblem(
            "isolation",
            f"{record.key} was given in code; a worker process finds only what is installed.",
            'Install the plugin, or use isolation="inline".',
        )
        for record in plugins.discover()
        if record.key in wanted and not record.dist
    )
    return problems
