"""The project's chores. `nox` runs the gate; `nox -s boot` is a newcomer's first look.

Everything is tested as users get it: wheels are built once, then installed into each session's
environment. What must come from the operating system is in `tools/system.py`.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))
from tools import pythons, system

ROOT = Path(__file__).parent
DISTRIBUTIONS = ("microvm-core", "microvm-devices", "microvm-guest", "microvm-qemu")
SOURCES = tuple(f"{name}/src" for name in DISTRIBUTIONS)
TEST_TOOLS = ("pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.100")
PYTHONS = [nox.param(path, id=version) for version, path in pythons.found().items()]
THIS_PYTHON = pythons.oldest()

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "tests", "lowest", "matrix", "guest"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True


@functools.cache
def _emptied(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


@functools.cache
def _wheel_builder() -> list[Path]:
    return []


def _wheels(session: nox.Session) -> Path:
    """The folder with our wheels, built by the first session that asks in this run of nox."""
    folder = Path(session.cache_dir) / "wheels"
    if not _wheel_builder():
        _emptied(folder)
        session.run(
            "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder),
            *(f"./{name}" for name in DISTRIBUTIONS), silent=True,
        )  # fmt: skip
        _wheel_builder().append(folder)
    return folder


def _install_ours(session: nox.Session, *requirements: str, also: tuple[str, ...] = ()) -> None:
    """Install our own wheels (never a published release of the same name) and `also`."""
    folder = _wheels(session)
    ours = [str(next(folder.glob(f"{name.replace('-', '_')}-*.whl"))) for name in requirements]
    session.install(*ours, *also)


def _lowest() -> list[str]:
    """Each third-party dependency at the lowest version that our metadata allows."""
    pins = set()
    for name in DISTRIBUTIONS:
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]
        for requirement in project["dependencies"]:
            if match := re.fullmatch(r"([a-z-]+)>=([0-9.]+)", requirement):
                pins.add(f"{match[1]}=={match[2]}")
    return sorted(pins)


def _pytest(session: nox.Session, *args: str) -> None:
    session.run("python", "-m", "pytest", *args, *session.posargs)


@nox.session(python=THIS_PYTHON)
def boot(session: nox.Session) -> None:
    """Set everything up and boot a Linux guest: `uname -a`, its memory, the boot's timeline."""
    system.require(session, system.RUN, system.IMAGE)
    _install_ours(session, *DISTRIBUTIONS)
    session.run("microvm", "image", "build")
    session.run("microvm", "run", "--timing", "--", "sh", "-c", "uname -a; free -m")


@nox.session(python=THIS_PYTHON)
def lint(session: nox.Session) -> None:
    """Style, types, and that what is generated is up to date."""
    session.install("ruff==0.17.*", "mypy>=1.18,<3", *TEST_TOOLS)
    _install_ours(session, *DISTRIBUTIONS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *SOURCES)


@nox.session
@nox.parametrize("python", PYTHONS)
def tests(session: nox.Session) -> None:
    """Everything that needs no Linux guest, on each Python, with the newest dependencies."""
    system.require(session, system.RUN, system.AGENT)
    _install_ours(session, *DISTRIBUTIONS, also=TEST_TOOLS)
    _pytest(session, "-n", "2", "-m", "not linux_guest")


@nox.session(python=THIS_PYTHON)
def lowest(session: nox.Session) -> None:
    """The same on the oldest Python with the lowest version of each dependency."""
    system.require(session, system.RUN, system.AGENT)
    _install_ours(session, *DISTRIBUTIONS, also=(*_lowest(), *TEST_TOOLS))
    _pytest(session, "-n", "2", "-m", "not linux_guest")


@nox.session(python=THIS_PYTHON)
def guest(session: nox.Session) -> None:
    """What boots Linux guests, under QEMU, with the image built here if there is none yet."""
    system.require(session, system.RUN, system.IMAGE)
    _install_ours(session, *DISTRIBUTIONS, also=TEST_TOOLS)
    session.run("microvm", "image", "build")
    _pytest(session, "-m", "linux_guest")


@nox.session(python=THIS_PYTHON)
def bench(session: nox.Session) -> None:
    """The measures, as JSON. Never part of the gate: a figure is not a pass or a failure."""
    system.require(session, system.RUN, system.IMAGE)
    _install_ours(session, *DISTRIBUTIONS)
    session.run("microvm", "image", "build")
    session.run("python", "tools/bench.py", *session.posargs)
