"""Help for a machine's options, with what the installed plugins bring: loaded only to be read."""

from __future__ import annotations

import argparse


class MachineHelp(argparse.HelpFormatter):
    """Ends the help of ``--net`` and ``--device`` with the plugins that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        match action.dest:
            case "net":
                found = _nets()
            case "device":
                found = _devices()
            case _:
                return action.help
        # argparse fills in percent signs of its own.
        return f"{action.help}: {found.replace('%', '%%')}"


def _nets() -> str:
    from microvm.cli._option_words import net_help
    from microvm.plugins import installed_plugins

    factories = installed_plugins().load_net_backends()
    return net_help({factory.syntax: factory.summary for factory in factories})


def _devices() -> str:
    from microvm.plugins import PluginGroup, installed_plugins

    records = installed_plugins().discover()
    names = sorted({record.name for record in records if record.group is PluginGroup.DEVICE})
    return ", ".join(names) or "none is installed"
