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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nox
from nox.command import CommandFailed

sys.path.insert(0, str(Path(__file__).parent))
from tools import matrix as matrix_sets
from tools import pythons, system

ROOT = Path(__file__).parent
DISTRIBUTIONS = ("microvm-core", "microvm-devices", "microvm-guest", "microvm-kvm", "microvm-qemu")
SOURCES = tuple(f"{name}/src" for name in DISTRIBUTIONS)
DEVICE_EXAMPLE = "microvm-dice"
"""A stranger's device, which a guest uses as it is found where it is installed."""
ABI = "microvm-kvm/src/microvm_kvm/_abi/build.py"
TEST_TOOLS = (
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "PySocks>=1.7",
    "httpx[socks]>=0.28",
)
PYTHONS = [nox.param(path, id=version) for version, path in pythons.found().items()]
NEWEST = f"tests({PYTHONS[-1].id})" if PYTHONS else "tests"
THIS_PYTHON = pythons.oldest()
HOST_TESTS = "not linux_guest and not lab and not slow"
"""What is run on each Python; what is slow has a session of its own, on one."""
LINUX_ON_KVM = "(lab or linux_guest) and not slow"
LINUX_TESTS = ("tests/lab", "tests/guest")
"""What boots Linux on our own VMM: the lab's tests, and the suite that `guest` runs under QEMU."""
GUEST_TESTS = "linux_guest and not lab and not slow"
SOAK: tuple[tuple[str, dict[str, str], int], ...] = (
    ("linux_guest and slow", {}, 2),
    ("soak", {"MICROVM_NET_MIB": "1024", "MICROVM_VPN_MIB": "256"}, 1),
)
"""What is too long for the gate, with what in the environment, and on how many CPUs of a lab: every
kill of a machine in the middle of its writes, the rare ends of a VPN; then what carries as much as
it is told to."""
GUEST_DISKS = ("python", "tools/guest_disks.py")
"""Makes the disks that guests' tests start from, before they run."""
LAB_PYTEST = ("python", "-m", "pytest", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")
"""Hypothesis takes ten seconds to import in there, needed or not."""
LAB_SMOKE = ("microvm", "run", "--backend", "kvm", "--timing", "--", "uname", "-a")

nox.needs_version = ">=2024.10.9"
# Both ends of what is supported: the newest Python with the newest dependencies, the oldest with
# the lowest. What lies between is `nox -s tests`.
nox.options.sessions = ["lint", NEWEST, "lowest", "matrix", "guest", "lab_smoke"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True


@functools.cache
def _folder_once(path: Path) -> list[Path]:
    """Empty `path` the first time in this run of nox; the list is non-empty once it is filled."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return []


def _wheels(session: nox.Session) -> Path:
    """The folder with our wheels and all they depend on, filled once in a run of nox.

    One for each Python: ours are the same for all, but cffi's are not.
    """
    folder = Path(session.cache_dir) / "wheels" / str(session.python).strip("/").replace("/", "-")
    filled = _folder_once(folder)
    if not filled:
        examples = [f"./docs/examples/{name}" for name in matrix_sets.EXAMPLES]
        ours = [f"./{name}" for name in DISTRIBUTIONS]
        session.run(
            "python", "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), *ours, *examples
        )
        filled.append(folder)
    return folder


def _install_ours(session: nox.Session, *requirements: str) -> None:
    """Install from our own wheels alone: a release of the same name elsewhere is never taken.

    Twice, since pip keeps what has the version it wants, and ours has changed under that version.
    """
    from_wheels = ("--no-index", "--find-links", str(_wheels(session)))
    session.install(*from_wheels, *requirements)
    names = sorted({name for name in (*DISTRIBUTIONS, *requirements) if "[" not in name})
    there = session.run("python", "-m", "pip", "list", "--format=freeze", silent=True) or ""
    mine = [name for name in names if f"{name}==" in there]
    session.install(*from_wheels, "--force-reinstall", "--no-deps", *mine)


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
    session.run("python", ABI, "--check")


@nox.session(python=THIS_PYTHON)
def abi(session: nox.Session) -> None:
    """Make what is generated of KVM's declarations; with `-- --check`, only compare."""
    session.install("cffi>=1.17")
    session.run("python", ABI, *session.posargs)


@nox.session
@nox.parametrize("python", PYTHONS)
def tests(session: nox.Session) -> None:
    """Everything that needs no Linux guest, on each Python, with the newest dependencies."""
    system.require(session, system.RUN, system.TESTS)
    session.install(*TEST_TOOLS)
    _install_ours(session, *DISTRIBUTIONS)
    _pytest(session, "-n", "2", "-m", HOST_TESTS)


@nox.session(python=THIS_PYTHON)
def lowest(session: nox.Session) -> None:
    """The same on the oldest Python with the lowest version of each dependency."""
    system.require(session, system.RUN, system.TESTS)
    session.install(*_lowest(), *TEST_TOOLS)
    _install_ours(session, *DISTRIBUTIONS)
    _pytest(session, "-n", "2", "-m", HOST_TESTS)


@nox.session(python=THIS_PYTHON)
def slow(session: nox.Session) -> None:
    """What takes its time and needs no Linux guest: a thousand machines, a million requests."""
    system.require(session, system.RUN, system.TESTS)
    session.install(*TEST_TOOLS)
    _install_ours(session, *DISTRIBUTIONS)
    _pytest(session, "-m", "slow and not linux_guest and not lab")


@nox.session(python=THIS_PYTHON)
@nox.parametrize("installed", list(matrix_sets.SETS))
def matrix(session: nox.Session, installed: str) -> None:
    """Each set of distributions by itself: what it finds, and what it says of the rest."""
    wanted = matrix_sets.SETS[installed].requirements
    _install_ours(session, *wanted)
    session.run("python", "tools/matrix.py", installed)
    if installed == "all+example":
        session.install(*TEST_TOOLS)
        _pytest(session, "docs/examples")


@nox.session(python=THIS_PYTHON)
def guest(session: nox.Session) -> None:
    """What boots Linux guests, with the image built here if there is none yet.

    Under QEMU; on our own VMM where this machine's KVM boots Linux, as `microvm run` would.
    """
    system.require(session, system.RUN, system.IMAGE)
    session.install(*TEST_TOOLS)
    _install_ours(session, *DISTRIBUTIONS, DEVICE_EXAMPLE)
    session.run("microvm", "image", "build")
    session.run(*GUEST_DISKS)
    _pytest(session, "-m", GUEST_TESTS)


@nox.session(python=THIS_PYTHON)
def soak(session: nox.Session) -> None:
    """What boots Linux guests and takes hours; with `-- --lab`, on our own VMM in the lab."""
    in_lab = "--lab" in session.posargs
    more = [word for word in session.posargs if word != "--lab"]
    if in_lab:
        _lab_ready(session)
    else:
        system.require(session, system.RUN, system.IMAGE)
        _install_ours(session, *DISTRIBUTIONS)
        session.run("microvm", "image", "build")
    session.install(*TEST_TOOLS)
    session.run(*GUEST_DISKS)
    failed, empty = [], []
    for which, env, cpus in SOAK:
        # Its tracebacks are for tests of two minutes.
        words = ("-o", "faulthandler_timeout=0", "-m", which, *LINUX_TESTS, *more)
        # An hour's tests after an hour's tests: the second are run whatever the first have found.
        try:
            if in_lab:
                bounds = {"within_s": 6 * 3600, "cpus": cpus, "mem_mib": 6144}
                _in_lab(session, *LAB_PYTEST, *words, **bounds, env=env)
            else:
                session.run("python", "-m", "pytest", *words, env=env)
        except CommandFailed as error:
            # Of tests that were asked for by name a half may have none (pytest's code 5).
            (empty if more and error.return_code == 5 else failed).append(which)
    if len(empty) == len(SOAK):
        session.error("there are no such tests")
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@contextmanager
def _skipped_without(session: nox.Session, what: str) -> Iterator[None]:
    """A command of the block that fails skips the session, and says so."""
    try:
        yield
    except CommandFailed:
        session.skip(f"{what} can't be had here; what failed stands above")


def _lab_ready(session: nox.Session) -> None:
    """Set up what the lab and machines in it need."""
    with _skipped_without(session, "the lab's packages"):
        system.require(session, system.LAB, system.RUN, system.IMAGE)
    _install_ours(session, *DISTRIBUTIONS)
    with _skipped_without(session, "the lab's kernel"):
        session.run("python", "tools/lab", "--fetch")
    session.run("microvm", "image", "build")


def _in_lab(
    session: nox.Session,
    *words: str,
    within_s: int,
    cpus: int = 2,
    mem_mib: int = 3072,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command of this session's environment in the lab."""
    bounds = ["--within", str(within_s), "--cpus", str(cpus), "--mem-mib", str(mem_mib)]
    session.run("python", "tools/lab", "--timing", *bounds, "--", *words, env=env)


def _debian_guest(session: nox.Session) -> dict[str, str]:
    """Debian's own kernel and an initrd for it, by the names under which the tests know them."""
    with _skipped_without(session, "Debian's kernel for a guest"):
        printed = session.run("python", "tools/lab/debian_guest.py", silent=True, stderr=None)
    kernel, initrd = str(printed).split()
    return {"MICROVM_DEBIAN_KERNEL": kernel, "MICROVM_DEBIAN_INITRD": initrd}


@nox.session(python=THIS_PYTHON)
def lab(session: nox.Session) -> None:
    """What needs a KVM that boots Linux, in a machine that has one in software."""
    _lab_ready(session)
    _install_ours(session, DEVICE_EXAMPLE)
    session.run(*GUEST_DISKS)
    session.install(*TEST_TOOLS)
    env = _debian_guest(session)
    # Guests of several vCPUs live where the lab has one CPU (docs/contributing.md).
    for cpus, which in ((1, "smp"), (2, "not smp")):
        words = (*LAB_PYTEST, "-m", f"({LINUX_ON_KVM}) and {which}", *LINUX_TESTS, *session.posargs)
        _in_lab(session, *words, cpus=cpus, within_s=5400, mem_mib=6144, env=env)


@nox.session(python=THIS_PYTHON)
def lab_smoke(session: nox.Session) -> None:
    """One guest booted by our own VMM in the lab, and one command run in it."""
    _lab_ready(session)
    _in_lab(session, *LAB_SMOKE, within_s=300)


@nox.session(python=THIS_PYTHON)
def kvm(session: nox.Session) -> None:
    """What needs /dev/kvm, on this machine's own; what boots Linux says so where it can't."""
    system.require(session, system.RUN, system.IMAGE)
    session.install(*TEST_TOOLS)
    _install_ours(session, *DISTRIBUTIONS, DEVICE_EXAMPLE)
    _pytest(session, "-m", "kvm", "microvm-kvm/tests")
    session.run("microvm", "image", "build")
    session.run(*GUEST_DISKS)
    session.env["MICROVM_GUESTS_ON"] = "kvm"
    fit = "from microvm_kvm.plugin import probe; print(probe({}).usable)"
    if "True" in str(session.run("python", "-c", fit, silent=True)):
        session.env.update(_debian_guest(session))
    _pytest(session, "-m", LINUX_ON_KVM, *LINUX_TESTS)


@nox.session(python=THIS_PYTHON)
def bench(session: nox.Session) -> None:
    """The measures, as JSON: of this machine, and of the lab where there is one.

    Never part of the gate: a figure is not a pass or a failure.
    """
    system.require(session, system.RUN, system.IMAGE, system.TESTS)
    _install_ours(session, *DISTRIBUTIONS)
    session.run("microvm", "image", "build")
    session.run("python", "-m", "tools.bench", *session.posargs)
    if not session.posargs:
        _lab_ready(session)
        measures = ("--only", "lab", "--only", "beside_qemu", "--pairs", "5")
        _in_lab(session, "python", "-m", "tools.bench", *measures, within_s=3600)
