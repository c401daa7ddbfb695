"""Which files of the host's a configuration may have read: those beside it. Row 93."""

import os
from pathlib import Path

import pytest

from microvm_guest.openvpn.config import read_config
from microvm_guest.openvpn.errors import VpnConfigError

SECRET = b"aws_access_key_id\naws_secret_access_key\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the configuration is; a file that is nobody's business lies above it."""
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "vpn"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "pass").write_bytes(b"me\nhush\n")
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id").write_bytes(SECRET)
    (folder / "ca.crt").write_bytes(b"a certificate\n")
    return folder


def config(folder: Path, line: str) -> Path:
    path = folder / "c.ovpn"
    path.write_text(f"client\nremote a\nca ca.crt\n{line}\n")
    return path


def refused(folder: Path, line: str, *, outside: bool = False) -> str:
    with pytest.raises(VpnConfigError) as caught:
        read_config(config(folder, line), files_outside=outside)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "{above}/secret", "link"])
@pytest.mark.parametrize("directive", ["key", "auth-user-pass", "pkcs12"])
def test_what_is_outside_the_configurations_folder_is_not_read(
    folder: Path, directive: str, name: str
) -> None:
    (folder / "link").symlink_to("../secret")
    said = refused(folder, f"{directive} {name.format(above=folder.parent)}")
    assert f"line 4: The file of {directive!r} is not read:" in said
    assert "secret: it is outside" in said or "link: it is outside" in said
    assert "--allow-files" in said
    assert "aws" not in said


def test_what_is_hidden_is_not_read(folder: Path) -> None:
    """The folder may be a home."""
    assert ".ssh/id: it is hidden" in refused(folder, "key .ssh/id")


def test_the_user_may_say_that_all_are_read(folder: Path) -> None:
    for name in ("../secret", str(folder.parent / "secret"), ".ssh/id"):
        found = read_config(config(folder, f"key {name}"), files_outside=True)
        assert found.directives[-1].inline == SECRET.decode()


@pytest.mark.parametrize("name", ["sub/pass", "{folder}/sub/pass", "./sub/../sub/pass", "within"])
def test_what_is_beneath_it_is_read_however_it_is_named(folder: Path, name: str) -> None:
    (folder / "within").symlink_to("sub/pass")
    found = read_config(config(folder, f"auth-user-pass {name.format(folder=folder)}"))
    assert found.credentials is not None
    assert found.credentials.password == "hush"


def test_a_folder_may_be_named_by_a_link_and_be_hidden_itself(folder: Path) -> None:
    other = folder.parent / ".config"
    other.symlink_to("vpn")
    found = read_config(config(other, f"auth-user-pass {other}/sub/pass"))
    assert found.credentials is not None


@pytest.mark.parametrize("outside", [False, True])
def test_what_is_no_regular_file_is_not_waited_for(folder: Path, outside: bool) -> None:
    os.mkfifo(folder / "fifo")
    said = refused(folder, "key fifo\nca sub", outside=outside)
    assert "fifo: it is not a regular file" in said
    assert "sub: " in said


def test_a_device_is_none_either(folder: Path) -> None:
    assert "not a regular file" in refused(folder, "key /dev/zero", outside=True)


def test_a_file_that_is_not_there_is_told(folder: Path) -> None:
    assert "can't be read: none: No such file" in refused(folder, "key none")


def test_a_name_that_can_be_no_files_is_told(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    assert "The file of 'key'" in refused(folder, "key loop")
