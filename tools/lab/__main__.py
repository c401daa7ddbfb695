"""Run a command in the lab: `python tools/lab [--cpus N] [...] -- COMMAND ...`.

Exit code: the command's own; 124 when the time bound was hit; 125 when the lab failed, with a
sentence that says how and the console's last lines.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "microvm-core" / "src"),
    str(ROOT / "microvm-guest" / "src"),
]

from microvm_guest.image.errors import BuildError, ImageError  # noqa: E402
from microvm_guest.image.programs import is_static_elf  # noqa: E402
from microvm_guest.image.progress import Lines  # noqa: E402
from tools.lab.console import Console  # noqa: E402 - the path comes first
from tools.lab.kernel import lab_kernel  # noqa: E402
from tools.lab.machine import (  # noqa: E402
    MODULES,
    Machine,
    command_script,
    environment,
    initramfs,
    qemu_argv,
)
from tools.lab.session import LabFailed, OutOfTime, Wires, follow  # noqa: E402

OUT_OF_TIME, FAILED = 124, 125
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "setpriv": "util-linux",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}


def main() -> int:
    """Read the words, run, and say how it went."""
    parser = _parser()
    args = parser.parse_args()
    if not args.command and not args.fetch:
        parser.error("a command is wanted, behind --")
    # As Ctrl-C does it: blocks are left, and QEMU is gone before we are.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(show=args.console)
    try:
        return _run(args, console)
    except OutOfTime:
        print(f"lab: the command had not ended after {args.within:.0f} s.", file=sys.stderr)
        return OUT_OF_TIME
    except LabFailed as error:
        print(f"lab: {error} Its console said last:\n{console.tail()}", file=sys.stderr)
        return FAILED
    except ImageError as error:
        print(f"lab: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who read our words has gone. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(args: argparse.Namespace, console: Console) -> int:
    busybox = _requirements()
    kernel = lab_kernel(MODULES, Lines(sys.stderr), refresh=args.refresh)
    if args.fetch:
        return 0
    out = args.out and args.out.resolve()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    machine = Machine(cpus=args.cpus, mem_mib=args.mem_mib, out=out, talks=args.console)
    token = secrets.token_hex(16)
    command = command_script(
        args.command,
        env=environment(os.environ, out),
        cwd=str(Path.cwd()),
        out=out,
        token=token,
    )
    with ExitStack() as stack:
        wires = Wires(stack, initramfs(busybox, kernel.modules(), command))
        argv = qemu_argv(
            machine,
            kernel=kernel.kernel,
            initrd=f"/proc/self/fd/{wires.initrd}",
            descriptors=wires.writers,
        )
        code = follow(argv, wires, token, console, args.within)
    if args.timing:
        print(f"lab: up after {console.up_after_s:.2f} s", file=sys.stderr)
    return code


def _requirements() -> bytes:
    """See that every program is there; the one that goes into the lab is the answer."""
    missing = {package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    busybox = Path(shutil.which("busybox") or os.devnull).read_bytes()
    if not is_static_elf(busybox, "x86_64"):
        missing.add("busybox-static")
    if missing:
        raise BuildError(
            "Programs are missing.",
            remedy="As root: apt-get install --no-install-recommends " + " ".join(sorted(missing)),
        )
    return busybox


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/lab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cpus", type=int, default=2, help="vCPUs (2)")
    parser.add_argument("--mem-mib", type=int, default=3072, help="memory (3072)")
    parser.add_argument("--within", type=float, default=600, metavar="S", help="time bound (600)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a folder of the host that can be written, at the same path",
    )
    parser.add_argument("--console", action="store_true", help="show the lab's console on stderr")
    parser.add_argument("--timing", action="store_true", help="say how long the lab's boot took")
    parser.add_argument("--refresh", action="store_true", help="ask apt for a newer kernel")
    parser.add_argument("--fetch", action="store_true", help="fetch the kernel, and run nothing")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
