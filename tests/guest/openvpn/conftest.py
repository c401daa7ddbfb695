"""Debian's OpenVPN as the server, by each protocol, and the disk that its guests start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest.vpn_server import VpnServer, vpn_server

from microvm_guest.image import Silent, compose
from microvm_guest.image.variants import variant


@pytest.fixture(scope="session", autouse=True)
def vpn_disk() -> None:
    """The image variant; the first time it is fetched and made."""
    compose(variant("vpn"), Silent())


@pytest.fixture(params=["udp", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VpnServer]:
    """A server, by each protocol."""
    with vpn_server(tmp_path, request.param) as server:
        yield server


@pytest.fixture(params=["udp", "tcp"])
def patient_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VpnServer]:
    """With the keepalive that servers have: a slow machine that is busy is silent for 4 s."""
    with vpn_server(tmp_path, request.param, keepalive=("10", "60")) as server:
        yield server


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[VpnServer]:
    with vpn_server(tmp_path, "udp") as server:
        yield server


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[VpnServer]:
    with vpn_server(tmp_path, "tcp") as server:
        yield server
