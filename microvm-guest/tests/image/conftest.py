"""A kernel tree of a few lines that the real build takes for Linux, and an empty cache."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from microvm_guest.image import requirements
from microvm_guest.image.errors import RequirementsMissing
from microvm_guest.image.layout import CacheLayout

MAKEFILE = """\
VERSION = {version[0]}
PATCHLEVEL = {version[1]}
SUBLEVEL = {version[2]}
O ?= .

tinyconfig:
\t@echo '# CONFIG_SMP is not set' > $(O)/.config

olddefconfig:
\t@{olddefconfig}

bzImage:
\t@echo '  CC      init/main.o'
\t@echo built >> {log}
\t@{step}
\t@mkdir -p $(O)/arch/x86/boot
\t@echo bzImage $$KBUILD_BUILD_USER $$CFLAGS > $(O)/arch/x86/boot/bzImage

vmlinux:
\t@echo 'int start;' | gcc -c -x c - -o $(O)/vmlinux
"""

MakeTree = Callable[..., Path]


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return CacheLayout(tmp_path / "cache")


@pytest.fixture
def build_log(tmp_path: Path) -> Path:
    """Gets a line for each kernel built."""
    return tmp_path / "build.log"


@pytest.fixture
def needs_kernel_tools() -> None:
    """Skips on a host where no kernel could be built."""
    try:
        requirements.check(requirements.KERNEL_PROGRAMS, requirements.KERNEL_HEADERS)
    except RequirementsMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def make_tree(tmp_path: Path, build_log: Path, needs_kernel_tools: None) -> MakeTree:
    """Makes a tree; `step` is a shell line that runs in the middle of its build."""

    def make(
        name: str = "linux",
        *,
        step: str = "true",
        olddefconfig: str = "true",
        version: tuple[int, int, int] = (6, 1, 7),
    ) -> Path:
        tree = tmp_path / name
        tree.mkdir()
        (tree / "Kconfig").write_text("mainmenu\n")
        (tree / "Makefile").write_text(
            MAKEFILE.format(
                version=version,
                olddefconfig=olddefconfig.replace("$", "$$"),
                step=step.replace("$", "$$"),
                log=build_log,
            )
        )
        return tree

    return make


BUILDER = """\
import sys
from pathlib import Path
from microvm_guest.image import CacheLayout, ImageSpec, Silent, build_image
spec = ImageSpec(kernel_source=Path(sys.argv[2]))
print(build_image(spec, Silent(), CacheLayout(Path(sys.argv[1]))).id)
"""


@pytest.fixture
def start_builder(layout: CacheLayout) -> Callable[[Path], "subprocess.Popen[str]"]:
    """Builds in a process of its own, so that it can be killed."""

    def start(tree: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(layout.root), str(tree)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    return start
