"""``microvm stats --watch``, of a machine that closes who has been silent."""

import argparse
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microvm.cli import stats
from microvm.control.lines import answer
from microvm.errors import ConfigError, GuestGone

NAME = "web-1"


@contextmanager
def machine(place: Path, looks: int) -> Iterator[None]:
    """Answers one request a connection, as if a minute went by behind each, and then goes."""
    path = place / f"{NAME}.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            for look in range(looks):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    if look == looks - 1:
                        path.unlink()
                    connection.sendall(answer({"console": {"printed_bytes": look}}))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where machines' sockets are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "microvm").mkdir(mode=0o700)
    return tmp_path / "microvm"


def look(watch: float | None) -> int:
    return stats.run(argparse.Namespace(name=NAME, json=True, watch=watch))


def test_each_look_is_a_connection_of_its_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine closes one that was silent for a minute, and ``--watch`` may take a day."""
    with machine(place, looks=3), pytest.raises(GuestGone, match="'web-1' has gone"):
        look(watch=0.05)
    printed = [json.loads(line)["console"] for line in capsys.readouterr().out.splitlines()]
    assert printed == [{"printed_bytes": count} for count in range(3)]


def test_a_machine_that_was_never_there_has_not_gone(place: Path) -> None:
    with pytest.raises(ConfigError, match="No machine called 'web-1' is running"):
        look(watch=0.05)
