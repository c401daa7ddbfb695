"""``microvm image``: build guest images and disks, and see to those in the cache."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[argparse.Namespace], int]

_JSON_HELP = "print one JSON object"
_OF_DISKS = ("format", "name", "output", "size_mib", "minimal", "docs", "fresh")
_OF_KERNELS = ("series", "kernel_source", "fresh_kernel", "jobs")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``image`` with its verbs."""
    parser = subparsers.add_parser(
        "image",
        help="build, list and remove guest images",
        description="The guest image is a Linux kernel and an initramfs with the guest agent.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    build = verbs.add_parser(
        "build",
        help="build the guest image, or a disk of Debian packages",
        description=(
            "Build the image that machines boot by default, unless it is there. The first time "
            "takes some minutes, for a kernel is compiled; it is kept for the next time. "
            "With --packages, build a disk with a Debian system that has them, and print its path."
        ),
    )
    source = build.add_mutually_exclusive_group()
    source.add_argument(
        "--kernel-source",
        metavar="PATH",
        type=Path,
        help="a kernel source tree, tar file or linux-source .deb, in place of Debian's",
    )
    source.add_argument("--series", metavar="N.N", help="a kernel series of Debian's, e.g. 6.12")
    build.add_argument("--jobs", "-j", type=int, metavar="N", help="default: one per CPU")
    build.add_argument(
        "--fresh-kernel", action="store_true", help="get the series' newest kernel from Debian"
    )
    build.add_argument("--force", action="store_true", help="build it although it is there")
    _add_disk_options(build)
    build.add_argument("--quiet", "-q", action="store_true", help="no progress")
    _verb(build, _build)

    listing = verbs.add_parser("list", help="list the images in the cache")
    listing.add_argument(
        "--verify",
        action="store_true",
        help="read every file and compare it with what was built; exit with 1 on damage",
    )
    _verb(listing, _list)

    path = verbs.add_parser("path", help="print where the default image is")
    path.add_argument(
        "part",
        nargs="?",
        choices=("image", "kernel", "compressed-kernel", "initrd"),
        default="image",
        help="a file of it; default: its folder",
    )
    path.add_argument("--disk", metavar="NAME", help="where the disk of that name is, instead")
    _verb(path, _path)

    prune = verbs.add_parser(
        "prune",
        help="remove what is not needed from the cache",
        description="Remove all but the default image, its kernel, and disks that have a name: "
        "images of other versions, other disks, downloaded packages, leftovers of killed builds.",
    )
    prune.add_argument("--all", action="store_true", help="remove these as well")
    _verb(prune, _prune)


def _add_disk_options(build: argparse.ArgumentParser) -> None:
    disk = build.add_argument_group("a disk of packages")
    disk.add_argument(
        "--packages",
        metavar="LIST",
        type=lambda text: tuple(name for name in text.split(",") if name),
        help="names of Debian packages, with commas between them",
    )
    disk.add_argument(
        "--variant",
        metavar="NAME",
        help="the disk that a provisioner starts from, and the guest image with it: vpn",
    )
    disk.add_argument(
        "--format", metavar="FS", help="erofs (default), squashfs, or ext4, which can be written"
    )
    disk.add_argument(
        "--name", metavar="NAME", help="a name to find the disk by: microvm image path --disk NAME"
    )
    disk.add_argument(
        "--output", metavar="PATH", type=Path, help="put a copy there, which may be written"
    )
    disk.add_argument("--size-mib", metavar="N", type=int, help="how large an ext4 is to be")
    disk.add_argument(
        "--minimal",
        action="store_true",
        help="nothing that the packages don't ask for: there may be no shell",
    )
    disk.add_argument(
        "--docs", action="store_true", help="with manual pages, documentation and translations"
    )
    disk.add_argument(
        "--fresh", action="store_true", help="the newest packages, though the disk is there"
    )


def _verb(parser: argparse.ArgumentParser, handler: Handler) -> None:
    parser.add_argument("--json", action="store_true", help=_JSON_HELP)
    parser.set_defaults(func=run, image_verb=handler, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says.

    Raises:
        PluginMissing: microvm-guest, which knows about images, is not installed.
        ImageError: what the verb ran into.
    """
    try:
        import microvm_guest.image  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "microvm_guest":
            raise
        from microvm.errors import PluginMissing

        raise PluginMissing(
            "Guest images come with microvm-guest, which is not installed.",
            remedy="pip install microvm-guest",
        ) from None
    handler: Handler = args.image_verb
    return handler(args)


def _build(args: argparse.Namespace) -> int:
    from microvm_guest.image import ImageSpec, build_image, progress_for

    if args.variant is not None:
        return _build_variant(args)
    if args.packages is not None:
        return _build_disk(args)
    if alone := [f"--{name.replace('_', '-')}" for name in _OF_DISKS if getattr(args, name)]:
        args.parser.error(f"{alone[0]} is about a disk: give --packages as well")
    jobs = {} if args.jobs is None else {"jobs": args.jobs}
    spec = ImageSpec(
        series=args.series,
        kernel_source=args.kernel_source,
        fresh_kernel=args.fresh_kernel,
        force=args.force,
        **jobs,
    )
    image = build_image(spec, progress_for(sys.stderr, quiet=args.quiet))
    if args.json:
        _print_json(_as_json(image))
    else:
        print(image.path)
    return 0


def _build_variant(args: argparse.Namespace) -> int:
    """The image, unless it is there, and the disk that a provisioner starts it from."""
    import attrs

    from microvm_guest.image import ImageSpec, build_image, compose, progress_for
    from microvm_guest.image.variants import variant

    others = [*_OF_DISKS, *_OF_KERNELS, "packages"]
    given = [name for name in others if name not in ("fresh", "force") and getattr(args, name)]
    if given:
        args.parser.error(f"--{given[0].replace('_', '-')} can't be given for a variant")
    spec = attrs.evolve(variant(args.variant), fresh=args.fresh, force=args.force)
    build_image(ImageSpec(), progress_for(sys.stderr, quiet=args.quiet))
    disk = compose(spec, progress_for(sys.stderr, quiet=args.quiet))
    if args.json:
        _print_json(_disk_as_json(disk))
    else:
        print(disk.path)
    return 0


def _build_disk(args: argparse.Namespace) -> int:
    from microvm_guest.image import DiskSpec, compose, progress_for

    if alone := [f"--{name.replace('_', '-')}" for name in _OF_KERNELS if getattr(args, name)]:
        args.parser.error(f"{alone[0]} is about the kernel: there is none on a disk")
    given = {} if args.format is None else {"format": args.format}
    spec = DiskSpec(
        packages=args.packages,
        essential=not args.minimal,
        trim=not args.docs,
        size_mib=args.size_mib,
        name=args.name,
        fresh=args.fresh,
        force=args.force,
        **given,
    )
    disk = compose(spec, progress_for(sys.stderr, quiet=args.quiet))
    path = disk.path if args.output is None else disk.copy_to(args.output)
    if args.json:
        _print_json({**_disk_as_json(disk), "path": str(path)})
    else:
        print(path)
    return 0


def _list(args: argparse.Namespace) -> int:
    from microvm_guest.image import cache_layout, disk_names, list_disks, list_images

    listed = list_images(cache_layout(), verify=args.verify)
    names = disk_names(cache_layout())
    disks = list_disks(cache_layout(), verify=args.verify)
    if args.json:
        images = [
            {
                "id": one.id,
                "path": str(one.path),
                "default": one.is_default,
                "damage": list(one.damage),
                **({} if one.image is None else _as_json(one.image)),
            }
            for one in listed
        ]
        listed_disks = [
            {
                "id": one.id,
                "path": str(one.path),
                "names": names.get(one.id, []),
                "damage": list(one.damage),
                **({} if one.disk is None else _disk_as_json(one.disk)),
            }
            for one in disks
        ]
        _print_json({"images": images, "disks": listed_disks})
    elif not listed and not disks:
        print("There is no image. Build one: microvm image build", file=sys.stderr)
    for one in [] if args.json else listed:
        mark = "*" if one.is_default else " "
        about = (
            "damaged"
            if one.image is None
            else f"{one.image.arch}  Linux {one.image.kernel_version}  "
            f"{one.image.size_bytes / 1e6:.1f} MB"
        )
        print(f"{mark} {one.id}  {about}")
        for sentence in one.damage:
            print(f"    {sentence}")
    for disk in [] if args.json else disks:
        about = "damaged"
        if disk.disk is not None:
            size, count = disk.disk.size_bytes / 1e6, len(disk.disk.packages)
            called = "".join(f"  {name}" for name in names.get(disk.id, []))
            about = f"disk  {disk.disk.format}  {count} packages  {size:.1f} MB{called}"
        print(f"  {disk.id}  {about}")
        for sentence in disk.damage:
            print(f"    {sentence}")
    damaged = [*(one.damage for one in listed), *(one.damage for one in disks)]
    return 1 if any(damaged) else 0


def _path(args: argparse.Namespace) -> int:
    from microvm_guest.image import default_image, find_disk

    if args.disk is not None:
        disk = find_disk(args.disk)
        if args.json:
            _print_json(_disk_as_json(disk))
        else:
            print(disk.path)
        return 0
    image = default_image()
    if args.json:
        _print_json(_as_json(image))
        return 0
    parts = {
        "image": image.path,
        "kernel": image.kernel,
        "compressed-kernel": image.compressed_kernel,
        "initrd": image.initrd,
    }
    print(parts[args.part])
    return 0


def _prune(args: argparse.Namespace) -> int:
    from microvm_guest.image import cache_layout, progress_for, prune

    layout = cache_layout()
    freed = prune(layout, progress_for(sys.stderr, quiet=args.json), everything=args.all)
    if args.json:
        _print_json({"freed_bytes": freed})
    else:
        print(f"{freed / 1e6:.1f} MB freed in {layout.root}")
    return 0


def _as_json(image: Any) -> dict[str, Any]:
    return {
        "id": image.id,
        "path": str(image.path),
        "kernel": str(image.kernel),
        "compressed_kernel": str(image.compressed_kernel),
        "initrd": str(image.initrd),
        "manifest": image.manifest,
    }


def _disk_as_json(disk: Any) -> dict[str, Any]:
    return {
        "id": disk.id,
        "path": str(disk.path),
        "format": disk.format,
        "size_bytes": disk.size_bytes,
        "packages": dict(disk.packages),
    }


def _print_json(value: dict[str, Any]) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()
