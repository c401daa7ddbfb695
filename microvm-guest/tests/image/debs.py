"""Debian packages made by hand: what dpkg-deb would never build can be in them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive; fields are `TarInfo`'s."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in {"mode": 0o644, **fields}.items():
        setattr(info, field, value)
    return info, data


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(
    members: Iterable[tuple[tarfile.TarInfo, bytes]],
    kind: int = tarfile.GNU_FORMAT,
    compression: str = "",
) -> bytes:
    """An archive in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}", format=kind) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def deb(
    place: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], compression: str = ""
) -> Path:
    """A package (deb(5)) with these members; its control file says little."""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar": tar([member("./control", b"Package: x\nVersion: 1\n")]),
        f"data.tar{'.' if compression else ''}{compression}": tar(members, compression=compression),
    }
    with place.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            file.write(data + b"\n" * (len(data) % 2))
    return place
