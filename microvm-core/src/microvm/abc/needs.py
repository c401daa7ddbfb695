"""What a provisioner needs of image, kernel and backend, and what is known of an image. Values.

Core holds the one against the other before anything is started. What nobody knows is not guessed:
a user's own kernel or disk is booted, and what it lacks shows there.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from microvm.abc.backend import Capability


def _names(given: Iterable[str]) -> frozenset[str]:
    """They come from strangers; the letters of a single text are no names."""
    if isinstance(given, str):
        raise TypeError(f"{given!r} is one name; names come as a tuple or a set.")
    names = frozenset(given)
    objects: Iterable[object] = names
    if not all(isinstance(one, str) and one for one in objects):
        raise TypeError(f"{names!r} has something in it that is no name.")
    return names


def _paths(given: Iterable[str]) -> frozenset[str]:
    paths = _names(given)
    if relative := sorted(path for path in paths if not path.startswith("/")):
        raise ValueError(f"{relative[0]!r} is no absolute path in the guest.")
    return paths


def _symbols(given: Iterable[str]) -> frozenset[str]:
    symbols = _names(given)
    if prefixed := sorted(symbol for symbol in symbols if symbol.startswith("CONFIG_")):
        raise ValueError(f"{prefixed[0]!r} is meant without CONFIG_.")
    return symbols


def _capabilities(given: Iterable[Capability]) -> frozenset[Capability]:
    return frozenset(Capability(one) for one in given)


@attrs.frozen(kw_only=True)
class ProvisionerNeeds:
    """What must be there for a provisioner to work; by default nothing.

    A vsock device, or a backend with channels of its own, is not among it: every provisioner has
    that.
    """

    provisioners: frozenset[str] = attrs.field(factory=frozenset, converter=_names)
    """Others that it builds on, by name."""
    packages: frozenset[str] = attrs.field(factory=frozenset, converter=_names)
    """Debian packages on the guest's root file system. Of several one is enough, written as in a
    package's Depends: ``busybox-static | busybox``."""
    files: frozenset[str] = attrs.field(factory=frozenset, converter=_paths)
    """Absolute paths there, exactly as they are to be found."""
    kernel_features: frozenset[str] = attrs.field(factory=frozenset, converter=_symbols)
    """Symbols of the kernel's configuration that must be built in: ``TUN``."""
    capabilities: frozenset[Capability] = attrs.field(factory=frozenset, converter=_capabilities)
    """What the backend must be able to do."""
    remedy: str | None = None
    """How an image is made that has the packages, files and features: a sentence, with the
    command in it."""


def _known(given: Iterable[str] | None) -> frozenset[str] | None:
    return None if given is None else _names(given)


@attrs.frozen(kw_only=True)
class ImageFacts:
    """What is known of a kernel, an initrd or a disk without booting it; None is not known."""

    packages: frozenset[str] | None = attrs.field(default=None, converter=_known)
    """All Debian packages that are on it."""
    files: frozenset[str] | None = attrs.field(default=None, converter=_known)
    """All absolute paths that are on it."""
    kernel_features: frozenset[str] | None = attrs.field(default=None, converter=_known)
    """All symbols that are built into it (``y``)."""
