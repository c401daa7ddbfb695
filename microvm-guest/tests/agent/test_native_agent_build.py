"""How the agent is built."""

import re
import shutil
import subprocess

import pytest

from microvm_guest.agent import COMPILERS, build_id, compile_argv
from microvm_guest.protocol.frames import MAJOR, MINOR

GLIBC_RESOLVES = re.compile(r"in function `|Using 'getaddrinfo' in statically linked applications")
"""What the linker says of a static glibc. Since 2.34 "files" and "dns" are within it, and it needs
no library to resolve a name by them: tried in a root that had none."""


def test_the_build_id_names_the_sources_and_is_in_the_command():
    assert len(build_id()) == 16
    assert f'-DMICROVM_AGENT_BUILD="{build_id()}"' in compile_argv("cc", "out")


@pytest.mark.parametrize("cc", COMPILERS)
def test_it_compiles_without_a_warning_to_one_static_program(cc, tmp_path):
    if shutil.which(cc) is None:
        assert cc != "gcc", "The agent is compiled for each image: apt-get install gcc libc6-dev"
        pytest.skip(f"{cc} is not installed; the agent is then built with gcc")
    program = tmp_path / "agent"
    done = subprocess.run(compile_argv(cc, program), capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if not GLIBC_RESOLVES.search(line)]
    assert said == []
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"microvm-agent {build_id()}, protocol {MAJOR}.{MINOR}\n"
    if cc == "musl-gcc":
        assert program.stat().st_size < 160 * 1024


def test_the_same_sources_give_the_same_bytes(tmp_path):
    programs = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        program = tmp_path / name / "agent"
        subprocess.run(compile_argv("gcc", program), check=True)
        programs.append(program.read_bytes())
    assert programs[0] == programs[1]


@pytest.mark.parametrize("arguments", [["--connected-fd"], ["--listen-fd", "x", "y"], ["--help"]])
def test_wrong_arguments_are_told_what_there_is(plain_agent, arguments):
    done = subprocess.run([plain_agent.program, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")
