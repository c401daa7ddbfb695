"""Root file systems for the tests that boot guests: `python tools/guest_disks.py` makes them ready.

The tests ask for the same, and get what is there: so nothing is fetched or built while they run,
and none of it in the lab, which has no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [
    str(Path(__file__).parent.parent / name / "src") for name in ("microvm-core", "microvm-guest")
]

from microvm_guest.image import DiskSpec, File, compose, progress_for
from microvm_guest.image.variants import VARIANTS

PACKAGES = ("curl", "e2fsprogs", "fio", "iperf3", "iproute2", "iputils-ping", "mount")
"""What the tests run in guests, beside what is essential to Debian."""

OWN_INIT = "/opt/own-init"
_OWN_INIT_SCRIPT = b"""\
#!/bin/sh
mount -t devtmpfs dev /dev
echo '<0>init of my own' > /dev/kmsg
"""
SYSTEM = DiskSpec(
    packages=PACKAGES,
    files=[File(OWN_INIT.removeprefix("/"), _OWN_INIT_SCRIPT, mode=0o755)],
    name="guest-tests",
)
"""For whatever a test does in a guest."""
ROOTS = {
    kind: DiskSpec(packages=("e2fsprogs",), format=kind, name=f"guest-tests-{kind}")
    for kind in ("erofs", "ext4", "squashfs")
}
"""By file system: for what is about starting from it."""


def main() -> None:
    """Make all of them."""
    for spec in (SYSTEM, *ROOTS.values(), *VARIANTS.values()):
        print(compose(spec, progress_for(sys.stderr)).path)


if __name__ == "__main__":
    main()
