"""Debian's unmodified cloud kernel as a guest's, with our initramfs and the modules it needs.

Run by itself, prints two lines: the kernel's path and the initrd's. Boot them with `CMDLINE`. The
kernel has no virtio built in and takes no devices from its command line: it finds them by ACPI,
and its modules in the initrd.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "microvm-core" / "src"),
    str(ROOT / "microvm-guest" / "src"),
]

from microvm_guest.image import default_image  # noqa: E402 - the path comes first
from microvm_guest.image.cpio import Directory, File, archive  # noqa: E402
from microvm_guest.image.progress import Lines  # noqa: E402
from tools.lab.kernel import CLOUD, LabKernel, lab_kernel  # noqa: E402

MODULES = ("virtio_mmio", "vmw_vsock_virtio_transport")
INIT = "load-modules"
CMDLINE = f"rdinit=/{INIT}"
SCRIPT = b"""#!/bin/sh
for module in /modules/*; do insmod $module; done
exec /init
"""
INITRD = "initrd"


def debian_guest(kernel: LabKernel, initramfs: bytes) -> bytes:
    """Our initramfs and, behind it, an archive with the modules: Linux unpacks one after another.

    Linux, Documentation/driver-api/early-userspace/buffer-format.rst: archives may be concatenated
    at multiples of four bytes.
    """
    entries = [File(INIT, SCRIPT, mode=0o755), Directory("modules")]
    entries += [
        File(f"modules/{number:02}-{name}.ko", module)
        for number, (name, module) in enumerate(kernel.modules().items())
    ]
    return initramfs + bytes(-len(initramfs) % 4) + archive(entries)


def main() -> None:
    """Fetch, put together, print where."""
    kernel = lab_kernel(MODULES, Lines(sys.stderr), meta_package=CLOUD)
    image = default_image()
    initrd = kernel.path / f"{INITRD}-{image.path.name}"
    if not initrd.exists():
        fresh = initrd.with_suffix(".new")
        fresh.write_bytes(debian_guest(kernel, image.initrd.read_bytes()))
        fresh.rename(initrd)
    print(kernel.vmlinuz)
    print(initrd)


if __name__ == "__main__":
    main()
