"""``microvm image``: build the guest image, and see to those in the cache."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[argparse.Namespace], int]

_JSON_HELP = "print one JSON object"


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
        help="build the guest image",
        description=(
            "Build the image that machines boot by default, unless it is there. The first time "
            "takes some minutes, for a kernel is compiled; it is kept for the next time."
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
    _verb(path, _path)

    prune = verbs.add_parser(
        "prune",
        help="remove what is not needed from the cache",
        description="Remove all but the default image and its kernel: images of other versions, "
        "downloaded packages, leftovers of killed builds.",
    )
    prune.add_argument("--all", action="store_true", help="remove the default image as well")
    _verb(prune, _prune)


def _verb(parser: argparse.ArgumentParser, handler: Handler) -> None:
    parser.add_argument("--json", action="store_true", help=_JSON_HELP)
    parser.set_defaults(func=run, image_verb=handler)


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


def _list(args: argparse.Namespace) -> int:
    from microvm_guest.image import cache_layout, list_images

    listed = list_images(cache_layout(), verify=args.verify)
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
        _print_json({"images": images})
    elif not listed:
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
    return 1 if any(one.damage for one in listed) else 0


def _path(args: argparse.Namespace) -> int:
    from microvm_guest.image import default_image

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


def _print_json(value: dict[str, Any]) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()
