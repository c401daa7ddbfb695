"""What no program of ours on the host may ever do, looked for in the sources."""

import ast
from pathlib import Path

import pytest

from microvm import ConfigError
from microvm.forwards import TcpAddress, UnixAddress

ROOT = Path(__file__).parents[1]
MOUNTERS = {"mount", "losetup", "kpartx", "fuse2fs", "fusermount", "fusermount3", "guestmount"}

CODE_FROM_BYTES = {"pickle", "marshal", "shelve", "dill", "multiprocessing", "eval", "exec"}
"""What makes objects or code of bytes, and so lets whoever sends them run theirs."""
WAITING = {"bind", "create_server", "open_tcp_listeners", "serve_tcp", "start_server"}
BINDERS = {
    "microvm/unix_sockets.py",  # paths: 0600, in a directory of this user's
    "microvm/forwards/sockets.py",  # a forward's address, which the user gives
    "microvm_devices/net/socket/backend.py",  # our end of a datagram socket, in a folder of ours
    "microvm_guest/socks5/association.py",  # UDP: answers to what a guest has sent, and no others
    "microvm_qemu/_wiring.py",  # for QEMU, in a folder of ours
}
"""Who may wait for others at an address, and at which."""


def words_of(path: Path) -> set[str]:
    """Each string and each name that a module gets from another."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Constant(value=str(text)):
                found.add(text.rpartition("/")[2])
            case ast.Attribute(attr=name):
                found.add(name)
    return found


def test_no_file_system_is_mounted_on_the_host() -> None:
    """Row 80: the host's kernel trusts what a guest may have written."""
    modules = list(ROOT.glob("microvm-*/src/**/*.py"))
    assert len(modules) > 100
    assert [path for path in modules if words_of(path) & MOUNTERS] == []


def called_by(text: str) -> set[str]:
    """Each module that is imported, and each function and method that is called."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found.update(name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module)):
                found.add(module.partition(".")[0])
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
                found.add(name)
    return found


def sources() -> dict[str, Path]:
    """Our modules, by their paths beneath `src`; not the doubles for tests."""
    return {
        path.as_posix().partition("/src/")[2]: path
        for path in ROOT.glob("microvm-*/src/**/*.py")
        if "testing" not in path.as_posix().partition("/src/")[2]
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", "pickle"),
        ("from multiprocessing.connection import Client", "multiprocessing"),
        ("eval(data)", "eval"),
        ("import socket\nsocket.socket().bind(('', 80))", "bind"),
        ("async def f():\n    await trio.serve_tcp(handler, 80)", "serve_tcp"),
    ],
)
def test_what_a_source_calls_is_seen(text: str, found: str) -> None:
    assert found in called_by(text)


def test_row_85_nobodys_bytes_become_objects_or_code() -> None:
    """Row 85: what processes say to each other is JSON, or frames of fields."""
    modules = sources()
    assert len(modules) > 100
    users = {
        name for name, path in modules.items() if called_by(path.read_text()) & CODE_FROM_BYTES
    }
    assert users == set()


def test_row_85_only_these_wait_for_others() -> None:
    """Row 85: none of them at a port or an address that nobody has asked for."""
    waiting = {name for name, path in sources().items() if called_by(path.read_text()) & WAITING}
    assert waiting == BINDERS


def test_row_85_no_socket_is_where_every_user_of_the_host_finds_it() -> None:
    """Row 85: a TCP port is the loopback's if not told otherwise, and no name is abstract."""
    assert TcpAddress(port=1080).host == "127.0.0.1"
    with pytest.raises(ConfigError):
        UnixAddress(path="\0abstract")
