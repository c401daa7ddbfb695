"""A cached image is found through one pointer, and believed only when it is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm_guest.image.errors import ImageDamaged, ImageNotBuilt
from microvm_guest.image.images import MAX_MANIFEST_BYTES, default_image, load_image
from microvm_guest.image.kernels import CachedKernel, find_kernel, kernel_key, list_kernels
from microvm_guest.image.layout import CacheLayout
from microvm_guest.image.listing import list_images
from microvm_guest.image.recipe import image_recipe, kernel_recipe
from microvm_guest.image.recipe import settings as settings_of

IMAGE_ID = "0123456789abcdef"
GOOD: dict[str, Any] = {
    "arch": "x86_64",
    "kernel": {"version": "6.1.7"},
    "files": {"vmlinux": {"size": 6}, "initrd.cpio": {"size": 4}},
}


def put(layout: CacheLayout, manifest: Any = GOOD, pointer: str = IMAGE_ID) -> Path:
    image = layout.image(IMAGE_ID)
    image.mkdir(parents=True)
    layout.pointers.mkdir()
    layout.pointer(image_recipe()).write_text(pointer + "\n")
    (image / "vmlinux").write_bytes(b"kernel")
    (image / "initrd.cpio").write_bytes(b"cpio")
    (image / "manifest.json").write_text(json.dumps(manifest))
    return image


def test_the_default_image_is_what_the_pointer_names(layout: CacheLayout) -> None:
    path = put(layout)
    image = default_image(layout=layout)
    assert (image.id, image.path) == (IMAGE_ID, path)
    assert image.kernel.read_bytes() == b"kernel"
    assert image.initrd.read_bytes() == b"cpio"
    assert image.size_bytes == 10


def test_no_cache_is_no_image(layout: CacheLayout) -> None:
    with pytest.raises(ImageNotBuilt):
        default_image(layout=layout)


def test_an_image_of_another_recipe_is_not_taken(layout: CacheLayout) -> None:
    put(layout)
    layout.pointer(image_recipe()).rename(layout.pointer("another"))
    with pytest.raises(ImageNotBuilt):
        default_image(layout=layout)


@pytest.mark.parametrize("pointer", ["", "..", "../../etc", "a/b", "gone", "a b"])
def test_a_pointer_that_names_no_image_is_damage(layout: CacheLayout, pointer: str) -> None:
    put(layout, pointer=pointer)
    with pytest.raises(ImageDamaged):
        default_image(layout=layout)


def test_a_pointer_of_other_bytes_is_no_pointer(layout: CacheLayout) -> None:
    put(layout)
    layout.pointer(image_recipe()).write_bytes(b"\xff\xfe")
    with pytest.raises(ImageNotBuilt):
        default_image(layout=layout)


@pytest.mark.parametrize("name", ["vmlinux", "initrd.cpio"])
def test_a_file_gone_or_of_another_size_is_damage(layout: CacheLayout, name: str) -> None:
    path = put(layout) / name
    path.write_bytes(b"x")
    with pytest.raises(ImageDamaged, match="1 bytes"):
        default_image(layout=layout)
    path.unlink()
    with pytest.raises(ImageDamaged, match="gone"):
        default_image(layout=layout)


def test_a_file_replaced_by_a_link_is_damage(layout: CacheLayout, tmp_path: Path) -> None:
    path = put(layout) / "vmlinux"
    (tmp_path / "other").write_bytes(b"kernel")
    path.unlink()
    path.symlink_to(tmp_path / "other")
    with pytest.raises(ImageDamaged, match="not a regular file"):
        default_image(layout=layout)


@pytest.mark.parametrize("key", ["arch", "kernel", "files"])
def test_a_manifest_that_lacks_something_is_damage(layout: CacheLayout, key: str) -> None:
    put(layout, {name: value for name, value in GOOD.items() if name != key})
    with pytest.raises(ImageDamaged):
        default_image(layout=layout)


def test_a_manifest_that_lists_no_initrd_is_damage(layout: CacheLayout) -> None:
    put(layout, {**GOOD, "files": {"vmlinux": {"size": 6}}})
    with pytest.raises(ImageDamaged, match=r"does not list initrd\.cpio"):
        default_image(layout=layout)


def test_a_manifest_without_end_is_damage(layout: CacheLayout) -> None:
    path = put(layout)
    (path / "manifest.json").write_text(json.dumps(GOOD) + " " * MAX_MANIFEST_BYTES + "{")
    # Read up to its bound, it is whole; one that is longer inside is not.
    default_image(layout=layout)
    (path / "manifest.json").write_text(json.dumps({**GOOD, "x": "y" * MAX_MANIFEST_BYTES}))
    with pytest.raises(ImageDamaged):
        default_image(layout=layout)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["arch", "kernel", "files", "version", "size", "vmlinux", "../x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_any_manifest_at_all_is_damage(layout: CacheLayout, manifest: Any) -> None:
    image = layout.image(IMAGE_ID)
    image.mkdir(parents=True, exist_ok=True)
    (image / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ImageDamaged):
        load_image(image)


def test_the_list_shows_damaged_images_too(layout: CacheLayout) -> None:
    put(layout)
    (layout.images / "stray").mkdir()
    whole, stray = list_images(layout)
    assert (whole.id, whole.is_default, whole.damage) == (IMAGE_ID, True, ())
    assert (stray.id, stray.is_default, stray.image) == ("stray", False, None)
    assert stray.damage


def test_a_recipe_is_the_same_each_time_and_the_kernels_is_part_of_the_images() -> None:
    assert image_recipe() == image_recipe()
    assert image_recipe() != kernel_recipe()


def test_a_comment_in_a_fragment_costs_no_kernel() -> None:
    assert settings_of(b"# why\nCONFIG_A=y\n\n# CONFIG_B is not set\n") == (
        b"CONFIG_A=y\n# CONFIG_B is not set"
    )


# --- kernels -------------------------------------------------------------------------------


def kernel(version: str, recipe: str = "r", source: str = "debian x") -> CachedKernel:
    return CachedKernel(
        path=Path("/"),
        arch="x86_64",
        recipe=recipe,
        source=source,
        version=version,
        steps=1,
        files={},
    )


def test_the_best_tried_series_and_its_newest_version_is_found() -> None:
    kernels = [kernel(version) for version in ("6.12.1", "6.1.9", "6.1.10", "6.20.0")]
    found = find_kernel(kernels, recipe="r")
    assert found is not None
    assert found.version == "6.1.10"
    found = find_kernel(kernels, recipe="r", series="6.12")
    assert found is not None
    assert found.version == "6.12.1"
    assert find_kernel(kernels, recipe="r", series="6.2") is None


def test_a_kernel_of_another_recipe_is_not_taken() -> None:
    assert find_kernel([kernel("6.1.1", recipe="old")], recipe="r") is None


def test_a_users_kernel_is_taken_only_for_its_very_source() -> None:
    kernels = [kernel("6.1.1", source="tree abc")]
    assert find_kernel(kernels, recipe="r") is None
    assert find_kernel(kernels, recipe="r", source="tree abc") == kernels[0]
    assert find_kernel(kernels, recipe="r", source="tree def") is None


def test_kernels_of_different_making_lie_apart() -> None:
    keys = {
        kernel_key(recipe, source, version)
        for recipe in "ab"
        for source in "cd"
        for version in ("6.1.1", "6.1.2")
    }
    assert len(keys) == 8


def test_a_damaged_kernel_is_passed_over(layout: CacheLayout) -> None:
    broken = layout.kernels / "6.1.1-x"
    broken.mkdir(parents=True)
    assert list_kernels(layout) == []
    (broken / "kernel.json").write_text('{"files": {"vmlinux": 3}}')
    assert list_kernels(layout) == []
    (broken / "kernel.json").write_text(
        '{"files": {"vmlinux": {"size": 3}}, "version": "6.1.1", "arch": "x86_64",'
        ' "recipe": "r", "source": "s", "steps": 1}'
    )
    assert list_kernels(layout) == []
    (broken / "vmlinux").write_bytes(b"elf")
    assert [found.version for found in list_kernels(layout)] == ["6.1.1"]
