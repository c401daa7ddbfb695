"""The install matrix: sets of distributions, and what each must be able to do and to say.

The noxfile builds wheels of `DISTRIBUTIONS` and `EXAMPLES` once, and for each set installs its
requirements into a fresh environment, from those wheels alone, and runs there
`python tools/matrix.py SET`. Needs nothing but what the set brings: no pytest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

DISTRIBUTIONS = ("microvm-core", "microvm-devices", "microvm-guest", "microvm-kvm", "microvm-qemu")
EXAMPLES = ("microvm-dice", "microvm-paper", "microvm-broken")
"""Folders of docs/examples."""

PROVIDES = {
    "microvm-core": (),
    "microvm-devices": (
        *(f"device/{name}" for name in ("balloon", "blk", "console", "net", "rng", "vsock")),
        *(f"net_backend/{name}" for name in ("loopback", "null", "passt", "socket", "tap")),
    ),
    "microvm-guest": tuple(f"provisioner/{name}" for name in ("agent", "openvpn", "socks5")),
    "microvm-kvm": ("backend/kvm",),
    "microvm-qemu": ("backend/qemu",),
    "microvm-dice": ("device/dice",),
    "microvm-paper": ("backend/paper",),
    "microvm-broken": ("device/broken",),
}
INSTALLS = {key: dist for dist in DISTRIBUTIONS for key in PROVIDES[dist]}
"""What `pip install` must be named when the component is missing."""
EXIT_OWN_FAILURE = 125


@dataclass(frozen=True)
class InstalledSet:
    """What is asked of pip, and the distributions of ours that must be there after."""

    requirements: tuple[str, ...]
    distributions: tuple[str, ...]

    @property
    def components(self) -> set[str]:
        return {key for dist in self.distributions for key in PROVIDES[dist]}


SETS = {
    "core": InstalledSet(("microvm-core",), ("microvm-core",)),
    "core+devices": InstalledSet(("microvm-devices",), ("microvm-core", "microvm-devices")),
    "core+guest": InstalledSet(("microvm-guest",), ("microvm-core", "microvm-guest")),
    "core+kvm": InstalledSet(("microvm-kvm",), ("microvm-core", "microvm-kvm")),
    "core+qemu": InstalledSet(("microvm-qemu",), ("microvm-core", "microvm-qemu")),
    "all": InstalledSet(("microvm-core[all]",), DISTRIBUTIONS),
    "all+example": InstalledSet(
        ("microvm-core[all]", "microvm-dice", "microvm-paper"),
        (*DISTRIBUTIONS, "microvm-dice", "microvm-paper"),
    ),
    "all+broken": InstalledSet(
        ("microvm-core[all]", "microvm-broken"), (*DISTRIBUTIONS, "microvm-broken")
    ),
}
"""The sets that consist of one distribution and core ask for that one alone: it brings core."""


# --- the checks, each run in the environment of a set --------------------------------------------


def check_exactly_these_distributions_are_there_and_import(wanted: InstalledSet) -> None:
    there = {
        name for dist in metadata.distributions() if (name := dist.metadata["Name"]) in PROVIDES
    }
    assert there == set(wanted.distributions), there
    for name in wanted.distributions:
        import_module("microvm" if name == "microvm-core" else name.replace("-", "_"))


def check_what_an_extra_brings_depends_on_the_platform(wanted: InstalledSet) -> None:
    """The built metadata, since a build back end may write something else than it was given."""
    for requirement in metadata.requires("microvm-core") or ():
        if re.search(r"extra == .(host|all)\b", requirement):
            assert "sys_platform == " in requirement, requirement


def check_each_component_is_found_and_loads_but_the_broken_one(wanted: InstalledSet) -> None:
    listed = json.loads(microvm("plugins", "--json").stdout)["plugins"]
    states = {f"{entry['group']}/{entry['name']}": entry["state"] for entry in listed}
    assert states == {
        key: "broken" if key == "device/broken" else "ok" for key in wanted.components
    }, states
    broken = "broken" in states.values()
    assert microvm("plugins", "--strict").returncode == (1 if broken else 0)
    assert microvm("plugins", MICROVM_STRICT_PLUGINS="1").returncode == (1 if broken else 0)
    for entry in listed:
        assert entry["version"] == metadata.version(entry["distribution"])


def check_what_is_missing_is_named_with_the_pip_install_that_brings_it(
    wanted: InstalledSet,
) -> None:
    from microvm.errors import PluginMissing
    from microvm.plugins import PluginGroup, installed_plugins

    for key, dist in INSTALLS.items():
        group, _, name = key.partition("/")
        try:
            installed_plugins().load(PluginGroup(group), name)
            told = ""
        except PluginMissing as error:
            told = str(error)
        missing = key not in wanted.components
        assert bool(told) == missing, f"{key}: {told or 'was loaded from nowhere'}"
        assert not missing or (f"pip install {dist}" in told and name in told), told


def check_a_first_run_says_what_to_do_next(wanted: InstalledSet) -> None:
    """There is no image in an empty cache, so no set gets as far as a guest."""
    done = microvm("run", "--", "true")
    assert done.returncode == EXIT_OWN_FAILURE, done
    assert done.stdout == "", done
    assert "Traceback" not in done.stderr, done.stderr
    faults = [line for line in done.stderr.splitlines() if "can't be used:" in line]
    assert all("microvm-broken" in line for line in faults), done.stderr
    backends = sorted(
        key for key in wanted.components & set(INSTALLS) if key.startswith("backend/")
    )
    if not backends:
        assert "pip install 'microvm-core[host]'" in done.stderr, done.stderr
        return
    usable = [key for key in backends if is_usable(key.removeprefix("backend/"))]
    if not usable:
        assert all(key.removeprefix("backend/") + ": " in done.stderr for key in backends), done
        return
    for key, dist in INSTALLS.items():
        missing = key not in wanted.components and not key.startswith("backend/")
        assert (f"pip install {dist}" in done.stderr) == missing, done.stderr
    if wanted.components >= set(INSTALLS):
        assert "microvm image build" in done.stderr, done.stderr


def check_kvm_says_what_it_is_good_for(wanted: InstalledSet) -> None:
    """Where it is not usable and nothing else is there, `run` gives its reason and a remedy."""
    checks = json.loads(microvm("doctor", "--no-boot", "--json").stdout)["checks"]
    (kvm,) = [check for check in checks if check["name"] == "backend kvm"]
    reason = kvm["finding"].splitlines()[0]
    if not is_usable("kvm"):
        assert kvm["remedy"], kvm
        if "backend/qemu" not in wanted.components:
            done = microvm("run", "--", "true")
            assert f"kvm: {without_speed(reason)}" in without_speed(done.stderr), done.stderr
            assert kvm["remedy"] in done.stderr, done.stderr


def check_the_broken_plugin_costs_one_warning_and_nothing_else(wanted: InstalledSet) -> None:
    plain = microvm("run", "--", "true")
    lines = plain.stderr.splitlines()
    warnings = [line for line in lines if "microvm-broken" in line]
    assert len(warnings) == 1, plain.stderr
    for part in (
        "device/broken of microvm-broken 1.0.0",
        "RuntimeError: broken on purpose",
        "MICROVM_DISABLE_PLUGINS=device/broken",
    ):
        assert part in warnings[0], warnings[0]
    without = microvm("run", "--", "true", MICROVM_DISABLE_PLUGINS="microvm-broken")
    (off,) = [line for line in without.stderr.splitlines() if "microvm-broken" in line]
    assert "switches off" in off, off
    assert without.stderr.splitlines()[1:] == [line for line in lines if line != warnings[0]]
    assert without.returncode == plain.returncode
    strict = microvm("run", "--", "true", MICROVM_STRICT_PLUGINS="1")
    assert strict.returncode == EXIT_OWN_FAILURE
    assert "microvm-broken 1.0.0 can't be used" in strict.stderr, strict.stderr


def check_the_examples_work_like_our_own(wanted: InstalledSet) -> None:
    import trio

    from microvm import BootSource, Machine, MachineConfig
    from microvm.plugins import installed_plugins
    from microvm.testing.boot_files import tiny_kernel

    with tempfile.TemporaryDirectory() as folder:
        config = MachineConfig(
            backend="paper",
            backend_options={"pretend": True},
            boot=BootSource(kernel=tiny_kernel(Path(folder) / "kernel")),
            provisioners=(),
        )

        async def main() -> bytes:
            async with Machine(config) as machine:
                assert machine.backend.name == "paper"
                async with await machine.connect(7) as stream:
                    await stream.send_all(b"hello")
                    return bytes(await stream.receive_some())

        assert trio.run(main) == b"hello"
    assert installed_plugins().load_device("dice").create({"seed": 7}).device_id == 4


CHECKS: tuple[tuple[str | None, Callable[[InstalledSet], None]], ...] = (
    (None, check_exactly_these_distributions_are_there_and_import),
    (None, check_what_an_extra_brings_depends_on_the_platform),
    (None, check_each_component_is_found_and_loads_but_the_broken_one),
    (None, check_what_is_missing_is_named_with_the_pip_install_that_brings_it),
    (None, check_a_first_run_says_what_to_do_next),
    ("backend/kvm", check_kvm_says_what_it_is_good_for),
    ("device/broken", check_the_broken_plugin_costs_one_warning_and_nothing_else),
    ("backend/paper", check_the_examples_work_like_our_own),
)
"""Each with the component that a set must have for it to be asked."""


def microvm(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this environment, with an empty image cache and no switches but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MICROVM_")}
    # A path that is the same for every call, since errors name it; nothing is ever built in it.
    cache = Path(tempfile.gettempdir()) / f"microvm-matrix-{os.getpid()}"
    try:
        return subprocess.run(
            [sys.executable, "-m", "microvm", *words],
            env={**clean, "XDG_CACHE_HOME": str(cache), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def without_speed(text: str) -> str:
    """A probe measures it anew in each process."""
    return re.sub(r"[\d.]+ MIPS", "MIPS", text)


def is_usable(backend: str) -> bool:
    from microvm.plugins import installed_plugins

    empty: Mapping[str, object] = {}
    return installed_plugins().load_backend(backend).probe(empty).usable


def main(name: str) -> int:
    """Run every check of a set; 0 if all hold."""
    failures = 0
    for component, check in CHECKS:
        if component is not None and component not in SETS[name].components:
            continue
        title = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            check(SETS[name])
        except Exception:
            failures += 1
            print(f"{name}: FAILED: {title}", file=sys.stderr)
            traceback.print_exc()
        else:
            print(f"{name}: {title}")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SETS:
        sys.exit(f"usage: matrix.py {'|'.join(SETS)}")
    sys.exit(main(sys.argv[1]))
