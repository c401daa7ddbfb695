"""The sockets between us and a QEMU, without a QEMU."""

import os
import resource
import socket
from pathlib import Path

import pytest
import trio

from microvm.errors import BackendError
from microvm_qemu._wiring import Cables

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_each_device_has_the_two_ends_of_a_pair() -> None:
    cables = Cables(3)
    assert len(set(cables.inherited)) == 5
    for index, far in enumerate(cables.wiring.devices):
        assert isinstance(far, int)
        near = await cables.device(index)
        os.write(far, b"%d" % index)
        assert near.recv(1) == b"%d" % index
    cables.close()


async def test_one_that_is_connected_by_name_has_its_place_among_the_others() -> None:
    cables = Cables(3, named=[1])
    first, path, third = cables.wiring.devices
    assert isinstance(path, str)
    assert cables.inherited[2:] == (first, third)
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(path)
        near = await cables.device(1)
        with near:
            assert not Path(path).parent.exists()
            qemu.sendall(b"x")
            assert near.recv(1) == b"x"
    os.write(third, b"3")
    assert (await cables.device(2)).recv(1) == b"3"
    cables.close()


def test_a_name_that_nobody_connects_to_is_gone_with_the_rest() -> None:
    cables = Cables(1, named=[0])
    path = Path(str(cables.wiring.devices[0]))

    async def wait_in_vain() -> None:
        with trio.move_on_after(0.01):
            await cables.device(0)

    trio.run(wait_in_vain)
    assert path.exists()
    cables.close()
    cables.close()
    assert not path.parent.exists()


def test_a_folder_whose_name_is_too_long_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(BackendError, match="Set TMPDIR"):
        Cables(1, named=[0])
    assert list(folder.iterdir()) == []


def test_without_a_folder_for_temporary_files_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with pytest.raises(BackendError, match=r"/no/such/folder.*\n.*Set TMPDIR"):
        Cables(1, named=[0])


def test_without_descriptors_no_folder_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = os.dup(0)
    os.close(wanted)
    # Six for the pairs, none for the listener.
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + 6, hard))
    try:
        with pytest.raises(BackendError, match="ulimit -n"):
            Cables(1, named=[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
