"""The two programs of the initramfs: the agent, compiled here, and busybox, found or fetched."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from microvm_guest.agent import COMPILERS, compile_argv
from microvm_guest.image.debian import fetch, member_of
from microvm_guest.image.errors import BuildError
from microvm_guest.image.process import output_of, run
from microvm_guest.image.requirements import has_apt

if TYPE_CHECKING:
    from microvm_guest.image.cache import Cache
    from microvm_guest.image.progress import Progress

MACHINES = {"x86_64": 62, "aarch64": 183}
"""`e_machine` (ELF specification, "Machine Information") by architecture."""

MAX_PROGRAM_BYTES = 16 << 20
_BUSYBOX_IN_DEB = re.compile(r"\./(?:usr/)?bin/busybox")
_BUSYBOX_VERSION = re.compile(r"BusyBox v(\S+)")
_APPLET = re.compile(r"[^/\s]+(?:/[^/\s]+)*")


@attrs.frozen(kw_only=True)
class Busybox:
    """A static busybox and what it can do."""

    program: bytes = attrs.field(repr=False)
    version: str
    applets: tuple[str, ...] = attrs.field(repr=False)


def compile_agent(folder: Path, progress: Progress) -> tuple[bytes, str]:
    """Compile the agent; return the program and the compiler's name.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    progress.update("compiling the agent", 0, 0)
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None:
        raise BuildError(
            f"There is no C compiler ({' or '.join(COMPILERS)}).",
            remedy="Install with: apt-get install --no-install-recommends gcc libc6-dev",
        )
    output = folder / "agent"
    run(compile_argv(compiler, output), what="compiling the agent", cwd=folder)
    return output.read_bytes(), compiler


def find_busybox(cache: Cache, folder: Path, arch: str, progress: Progress) -> Busybox:
    """The host's busybox if it is static and fits, else the one of Debian's busybox-static.

    Raises:
        BuildError: neither is to be had.
    """
    progress.update("preparing busybox", 0, 0)
    installed = shutil.which("busybox")
    if installed is not None and _is_static(Path(installed), arch):
        return _inspect(Path(installed))
    if not has_apt():
        raise BuildError(
            "There is no static busybox on PATH, and no apt to fetch one with.",
            remedy="Install a static busybox; Debian calls it busybox-static.",
        )
    deb = fetch(cache, "busybox-static", progress)
    program = folder / "busybox"
    with member_of(deb, _BUSYBOX_IN_DEB) as (member, stream):
        if member.size > MAX_PROGRAM_BYTES:
            raise BuildError(f"The busybox in {deb} is too large.", remedy="Remove that file.")
        program.write_bytes(stream.read(member.size))
    program.chmod(0o755)
    if not _is_static(program, arch):
        raise BuildError(
            f"The busybox in {deb} is not a static program for {arch}.",
            remedy="Install busybox-static for this architecture.",
        )
    return _inspect(program)


def _is_static(path: Path, arch: str) -> bool:
    if path.stat().st_size > MAX_PROGRAM_BYTES:
        return False
    return is_static_elf(path.read_bytes(), arch)


def is_static_elf(program: bytes, arch: str) -> bool:
    """Whether these bytes are a 64-bit ELF program for `arch` that needs no loader. Pure.

    Source: ELF-64 Object File Format 1.5, sections 3 "File header" and 8 "Program header
    table"; PT_INTERP is 3.
    """
    if len(program) < 64 or program[:6] != b"\x7fELF\x02\x01":
        return False
    machine = struct.unpack_from("<H", program, 18)[0]
    table = struct.unpack_from("<Q", program, 32)[0]
    entry_size, count = struct.unpack_from("<HH", program, 54)
    if machine != MACHINES[arch] or entry_size != 56 or table + 56 * count > len(program):
        return False
    kinds = [struct.unpack_from("<I", program, table + 56 * index)[0] for index in range(count)]
    return 3 not in kinds


def _inspect(program: Path) -> Busybox:
    listed = output_of([str(program), "--list-full"], what="asking busybox for its applets")
    banner = output_of([str(program), "--help"], what="asking busybox for its version")
    version = _BUSYBOX_VERSION.search(banner)
    return Busybox(
        program=program.read_bytes(),
        version=version[1] if version else "unknown",
        applets=tuple(name for name in listed.split() if _APPLET.fullmatch(name)),
    )
