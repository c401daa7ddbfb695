"""Images and disks that are nothing but their manifests, as a build would leave them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from microvm.testing.boot_files import tiny_kernel


def put_image(folder: Path, config: str | None = "", initrd: bytes = b"") -> Path:
    """An image's folder; without a kernel configuration if that is None."""
    folder.mkdir()
    tiny_kernel(folder / "vmlinux")
    (folder / "initrd.cpio").write_bytes(initrd)
    if config is not None:
        (folder / "config").write_text(config)
    kernel = {"version": "6.1.7"}
    _manifest(folder, "manifest.json", {"arch": "x86_64", "kernel": kernel})
    return folder


def put_disk(folder: Path, packages: Iterable[str], kind: str = "erofs") -> Path:
    """A disk's folder."""
    folder.mkdir()
    (folder / f"disk.{kind}").write_bytes(b"disk")
    listed = {name: {"version": "1"} for name in packages}
    _manifest(folder, "disk.json", {"filesystem": kind, "recipe": "r", "packages": listed})
    return folder


def _manifest(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    files = {path.name: {"size": path.stat().st_size} for path in folder.iterdir()}
    (folder / name).write_text(json.dumps({**manifest, "files": files}))
