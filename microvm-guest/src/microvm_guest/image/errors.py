"""What can go wrong with a guest image, as types. All are `ImageError`s with a remedy."""

from __future__ import annotations

from collections.abc import Sequence

from microvm.errors import ImageError


class ImageNotBuilt(ImageError):
    """There is no guest image for this version of the package in the cache."""

    code = "boot.image.missing"


class ImageDamaged(ImageError):
    """A file of a cached image is missing or is not what the image's manifest says."""

    code = "boot.image.damaged"


class CacheError(ImageError):
    """The cache directory can't be used: read-only, full, not a directory, not ours."""

    code = "boot.image.cache"


class BuildError(ImageError):
    """A step of the build failed."""

    code = "boot.image.build"


class RequirementsMissing(BuildError):
    """Programs or headers that a build needs are not on this host."""

    code = "boot.image.requirements"

    def __init__(
        self, message: str, *, programs: Sequence[str], packages: Sequence[str], remedy: str
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.programs = tuple(programs)
        self.packages = tuple(packages)


class KernelConfigError(BuildError):
    """The kernel's own configuration system did not accept what the fragments ask for."""

    code = "boot.image.config"

    def __init__(self, message: str, *, symbols: Sequence[str], remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.symbols = tuple(symbols)


class SourceUnavailable(BuildError):
    """The kernel's source or a Debian package can't be had."""

    code = "boot.image.source"
