"""What to tell a person whose plugin is missing: which `pip install` brings it, or a near name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import MappingProxyType

from microvm._discovery import DISABLE, PluginGroup, PluginRecord
from microvm.errors import PluginConflict, PluginMissing

OURS = MappingProxyType(
    {
        (PluginGroup.BACKEND, "qemu"): "microvm-qemu",
        (PluginGroup.BACKEND, "kvm"): "microvm-kvm",
        (PluginGroup.BACKEND, "hvf"): "microvm-hvf",
        (PluginGroup.BACKEND, "wsl"): "microvm-wsl",
        (PluginGroup.DEVICE, "vsock"): "microvm-devices",
        (PluginGroup.DEVICE, "balloon"): "microvm-devices",
        (PluginGroup.DEVICE, "blk"): "microvm-devices",
        (PluginGroup.DEVICE, "console"): "microvm-devices",
        (PluginGroup.DEVICE, "net"): "microvm-devices",
        (PluginGroup.DEVICE, "rng"): "microvm-devices",
        (PluginGroup.NET_BACKEND, "loopback"): "microvm-devices",
        (PluginGroup.NET_BACKEND, "null"): "microvm-devices",
        (PluginGroup.NET_BACKEND, "passt"): "microvm-devices",
        (PluginGroup.NET_BACKEND, "socket"): "microvm-devices",
        (PluginGroup.NET_BACKEND, "tap"): "microvm-devices",
        (PluginGroup.PROVISIONER, "agent"): "microvm-guest",
        (PluginGroup.PROVISIONER, "openvpn"): "microvm-guest",
        (PluginGroup.PROVISIONER, "socks5"): "microvm-guest",
    }
)
"""The distribution that provides each of the project's own components."""


def close_matches(name: str, known: Collection[str]) -> list[str]:
    """The names that a misspelt one may have been meant for."""
    import difflib  # half a millisecond, for errors alone

    return difflib.get_close_matches(name, sorted(known), n=3)


def missing(group: PluginGroup, name: str, installed: Collection[PluginRecord]) -> PluginMissing:
    """The error for a name that no plugin answers to."""
    dist = OURS.get((group, name))
    if dist is not None:
        return PluginMissing(
            f"No {group.words} {name!r} is installed; {dist} provides it.",
            remedy=f"pip install {dist}",
        )
    names = sorted({record.name for record in installed if record.group is group})
    others = sorted({record.group for record in installed if record.name == name} - {group})
    known = {*names, *(known for kind, known in OURS if kind is group)}
    near = close_matches(name, known)
    parts = [f"Installed: {', '.join(names) or 'none'}."]
    if others:
        parts.insert(0, f"{name!r} is the name of a {others[0].words}.")
    if near:
        parts.insert(0, f"Did you mean {' or '.join(map(repr, near))}?")
    return PluginMissing(f"No {group.words} {name!r} is installed.", remedy=" ".join(parts))


def disabled(record: PluginRecord) -> PluginMissing:
    """The error for a plugin that is there and switched off."""
    return PluginMissing(
        f"Plugin {record.key} of {record.origin} is switched off by {DISABLE}.",
        remedy=f"Take it out of {DISABLE} to use it.",
    )


def conflict(records: Sequence[PluginRecord]) -> PluginConflict:
    """The error for a name that several distributions provide."""
    first = records[0]
    dists = sorted({record.dist for record in records})
    remedy = f"Uninstall all but one, or switch the others off: {DISABLE}={','.join(dists[1:])}"
    if len(dists) == 1:
        remedy = f"Update or uninstall {dists[0]}."
    return PluginConflict(
        f"The {first.group.words} {first.name!r} is provided {len(records)} times: by "
        f"{' and by '.join(record.origin for record in records)}.",
        remedy=remedy,
    )
