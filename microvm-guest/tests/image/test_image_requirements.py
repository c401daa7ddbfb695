"""What a host lacks is told at once, with the one command that brings it."""

from collections.abc import Iterable

import pytest

from microvm_guest.image import requirements
from microvm_guest.image.errors import BuildError, RequirementsMissing


def nothing(_name: str) -> None:
    return None


def everything(name: str) -> str:
    return f"/usr/bin/{name}"


def no_headers(headers: Iterable[str]) -> list[str]:
    return list(headers)


def test_everything_missing_is_told_at_once_with_its_packages() -> None:
    with pytest.raises(RequirementsMissing) as caught:
        requirements.check(
            {"bc": "bc", "xz": "xz-utils", "gcc": "gcc"}, {"gelf.h": "libelf-dev"}, which=nothing
        )
    error = caught.value
    assert error.programs == ("bc", "gcc", "gelf.h", "xz")
    assert error.packages == ("bc", "gcc", "libelf-dev", "xz-utils")
    assert "apt-get install --no-install-recommends bc gcc libelf-dev xz-utils" in str(error.remedy)
    assert error.code == "boot.image.requirements"
    assert isinstance(error, BuildError)


def test_headers_are_asked_of_the_compiler() -> None:
    with pytest.raises(RequirementsMissing) as caught:
        requirements.check(
            {"gcc": "gcc"},
            {"gelf.h": "libelf-dev"},
            which=everything,
            missing_headers=no_headers,
        )
    assert caught.value.programs == ("gelf.h",)


def test_a_host_with_everything_passes() -> None:
    requirements.check(
        requirements.KERNEL_PROGRAMS,
        requirements.KERNEL_HEADERS,
        which=everything,
        missing_headers=lambda _headers: [],
    )


def test_the_compiler_knows_which_headers_are_there() -> None:
    assert requirements.find_missing_headers(["stddef.h", "no/such/header.h"]) == [
        "no/such/header.h"
    ]


def test_the_list_for_installers_holds_every_table() -> None:
    packages = requirements.debian_packages()
    assert list(packages) == sorted(set(packages))
    for package in ("busybox-static", "flex", "gcc", "libelf-dev", "musl-tools"):
        assert package in packages
