"""Building an image from end to end, with a kernel tree of a few lines and the real agent."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from microvm_guest.image.build import ImageSpec, build_image, prune
from microvm_guest.image.errors import (
    BuildError,
    CacheError,
    ImageDamaged,
    ImageNotBuilt,
    KernelConfigError,
    RequirementsMissing,
    SourceUnavailable,
)
from microvm_guest.image.images import default_image
from microvm_guest.image.layout import CacheLayout
from microvm_guest.image.listing import list_images
from microvm_guest.image.progress import Silent
from microvm_guest.image.requirements import KERNEL_PROGRAMS
from microvm_guest.kernel import fragment_paths
from microvm_guest.kernel.kconfig import parse, unmet

MakeTree = Callable[..., Path]
StartBuilder = Callable[[Path], "subprocess.Popen[str]"]


class Recorder:
    """A progress that remembers; and interrupts, like Ctrl-C, when a step begins."""

    def __init__(self, interrupt_at: str | None = None) -> None:
        self.labels: list[str] = []
        self.closed = 0
        self._interrupt_at = interrupt_at

    def update(self, label: str, done: int, total: int) -> None:
        if label not in self.labels:
            self.labels.append(label)
        if self._interrupt_at is not None and label.startswith(self._interrupt_at):
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed += 1


def left_over(layout: CacheLayout) -> list[Path]:
    """What should not be there after a build that came to nothing."""
    folders = (layout.work, layout.images, layout.kernels, layout.pointers)
    return [path for folder in folders for path in folder.iterdir()]


def test_a_built_image_is_the_default_and_whole(layout: CacheLayout, make_tree: MakeTree) -> None:
    with pytest.raises(ImageNotBuilt, match="has not been built") as caught:
        default_image(layout=layout)
    assert "microvm image build" in str(caught.value.remedy)
    recorder = Recorder()
    image = build_image(ImageSpec(kernel_source=make_tree()), recorder, layout)
    assert default_image(layout=layout) == image
    assert image.kernel.read_bytes()[:4] == b"\x7fELF"
    assert image.compressed_kernel.read_text() == "bzImage microvm\n"
    assert image.initrd.read_bytes()[:6] == b"070701"
    assert image.kernel_version == "6.1.7"
    assert recorder.closed == 1
    assert recorder.labels == [
        "configuring the kernel",
        "building Linux 6.1.7",
        "compiling the agent",
        "preparing busybox",
        "packing the image",
    ]
    (listed,) = list_images(layout, verify=True)
    assert listed.is_default
    assert listed.damage == ()
    assert list(layout.work.iterdir()) == []


def test_the_kernel_is_configured_by_the_fragments(
    layout: CacheLayout, make_tree: MakeTree
) -> None:
    image = build_image(ImageSpec(kernel_source=make_tree()), Silent(), layout)
    config = parse((image.path / "config").read_text())
    for path in fragment_paths("x86_64"):
        assert unmet(parse(path.read_text()), config) == []


def test_nothing_is_written_into_a_users_tree(layout: CacheLayout, make_tree: MakeTree) -> None:
    tree = make_tree()
    build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    assert sorted(path.name for path in tree.iterdir()) == ["Kconfig", "Makefile"]


def test_an_image_that_is_there_is_not_built_again(
    layout: CacheLayout, make_tree: MakeTree, build_log: Path
) -> None:
    spec = ImageSpec(kernel_source=make_tree())
    first = build_image(spec, Silent(), layout)
    recorder = Recorder()
    assert build_image(spec, recorder, layout) == first
    assert build_image(ImageSpec(), recorder, layout) == first
    assert recorder.labels == []
    assert build_log.read_text() == "built\n"


def test_a_forced_build_uses_the_kernel_and_makes_the_same_image(
    layout: CacheLayout, make_tree: MakeTree, build_log: Path
) -> None:
    tree = make_tree()
    first = build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    second = build_image(ImageSpec(kernel_source=tree, force=True), Silent(), layout)
    assert second == first
    assert build_log.read_text() == "built\n"


def test_the_same_inputs_give_the_same_image_elsewhere(
    layout: CacheLayout, tmp_path: Path, make_tree: MakeTree
) -> None:
    one = build_image(ImageSpec(kernel_source=make_tree("one")), Silent(), layout)
    elsewhere = CacheLayout(tmp_path / "elsewhere")
    two = build_image(ImageSpec(kernel_source=make_tree("two")), Silent(), elsewhere)
    assert one.path != two.path
    assert one.manifest["files"] == two.manifest["files"]


def test_a_changed_tree_is_another_kernel(
    layout: CacheLayout, make_tree: MakeTree, build_log: Path
) -> None:
    tree = make_tree()
    build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    makefile = (tree / "Makefile").read_text()
    (tree / "Makefile").write_text(makefile.replace("SUBLEVEL = 7", "SUBLEVEL = 8"))
    image = build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    assert image.kernel_version == "6.1.8"
    assert build_log.read_text() == "built\nbuilt\n"


def test_a_damaged_file_is_noticed_and_mended(
    layout: CacheLayout, make_tree: MakeTree, build_log: Path
) -> None:
    spec = ImageSpec(kernel_source=make_tree())
    image = build_image(spec, Silent(), layout)
    image.initrd.unlink()
    image.initrd.write_bytes(b"short")
    with pytest.raises(ImageDamaged, match="5 bytes") as caught:
        default_image(layout=layout)
    assert "--force" in str(caught.value.remedy)
    assert build_image(spec, Silent(), layout) == image
    assert default_image(layout=layout) == image
    assert build_log.read_text() == "built\n"


def test_a_kernel_with_changed_bytes_is_built_anew_by_force(
    layout: CacheLayout, make_tree: MakeTree, build_log: Path
) -> None:
    tree = make_tree()
    image = build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    image.kernel.chmod(0o644)
    image.kernel.write_bytes(bytes(image.kernel.stat().st_size))  # the cached kernel's, too
    (listed,) = list_images(layout, verify=True)
    assert "vmlinux" in listed.damage[0]
    assert build_image(ImageSpec(kernel_source=tree, force=True), Silent(), layout) == image
    (listed,) = list_images(layout, verify=True)
    assert listed.damage == ()
    assert build_log.read_text() == "built\nbuilt\n"


def test_symbols_that_the_kernel_did_not_take_are_listed(
    layout: CacheLayout, make_tree: MakeTree
) -> None:
    tree = make_tree(
        olddefconfig=r"sed -i -e /CONFIG_SMP=/d -e s/NR_CPUS=32/NR_CPUS=8/ $(O)/.config"
    )
    (tree / "Makefile").write_text((tree / "Makefile").read_text().replace("$$(O)", "$(O)"))
    with pytest.raises(KernelConfigError) as caught:
        build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    assert sorted(caught.value.symbols) == ["NR_CPUS", "SMP"]
    assert "NR_CPUS (wanted 32, got 8)" in caught.value.message
    assert left_over(layout) == []


def test_a_build_that_fails_leaves_nothing(layout: CacheLayout, make_tree: MakeTree) -> None:
    tree = make_tree(step="echo 'init/main.c:1: error: no' >&2; exit 1")
    with pytest.raises(BuildError, match="building the kernel") as caught:
        build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    assert "init/main.c:1: error: no" in str(caught.value)
    assert left_over(layout) == []


@pytest.mark.parametrize("step", ["building Linux", "compiling the agent", "packing"])
def test_an_interrupt_at_any_step_leaves_nothing_half(
    layout: CacheLayout, make_tree: MakeTree, step: str
) -> None:
    recorder = Recorder(interrupt_at=step)
    with pytest.raises(KeyboardInterrupt):
        build_image(ImageSpec(kernel_source=make_tree()), recorder, layout)
    assert recorder.closed == 1
    assert list(layout.work.iterdir()) == []
    assert list(layout.images.iterdir()) == []
    assert list(layout.pointers.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_builder_ended_by_a_signal_takes_make_along_and_the_next_one_succeeds(
    layout: CacheLayout,
    tmp_path: Path,
    make_tree: MakeTree,
    start_builder: StartBuilder,
    how: signal.Signals,
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    builder = start_builder(make_tree("slow", step=f"exec 9> {fifo}; echo up >&9; sleep 1000"))
    with fifo.open() as held:
        assert held.readline() == "up\n"
        builder.send_signal(how)
        builder.communicate()
        assert held.read() == "", "make and its children are gone when nobody holds the FIFO"
    assert list(layout.images.iterdir()) == []
    if how == signal.SIGINT:
        assert left_over(layout) == []
    build_image(ImageSpec(kernel_source=make_tree("quick")), Silent(), layout)
    assert list(layout.work.iterdir()) == []
    default_image(layout=layout)


def test_two_builders_do_the_work_once(
    layout: CacheLayout,
    tmp_path: Path,
    make_tree: MakeTree,
    start_builder: StartBuilder,
    build_log: Path,
) -> None:
    up, go = tmp_path / "up", tmp_path / "go"
    os.mkfifo(up)
    os.mkfifo(go)
    tree = make_tree(step=f"echo up > {up}; cat {go} > /dev/null")
    first = start_builder(tree)
    assert up.read_text() == "up\n"
    waits, results = threading.Event(), []

    class Waiting(Silent):
        def update(self, label: str, done: int, total: int) -> None:
            if label.startswith("Another process builds"):
                waits.set()

    def second() -> None:
        results.append(build_image(ImageSpec(kernel_source=tree), Waiting(), layout))

    thread = threading.Thread(target=second)
    thread.start()
    assert waits.wait(60)
    go.write_text("")
    printed, _ = first.communicate()
    thread.join()
    assert [image.id for image in results] == [printed.strip()]
    assert build_log.read_text() == "built\n"


def test_a_read_only_cache_that_holds_the_image_is_enough_to_find_it(
    layout: CacheLayout, make_tree: MakeTree
) -> None:
    image = build_image(ImageSpec(kernel_source=make_tree()), Silent(), layout)
    for path in (layout.root, layout.pointers, layout.images, image.path):
        path.chmod(0o555)
    try:
        assert default_image(layout=layout) == image
    finally:
        for path in (layout.root, layout.pointers, layout.images, image.path):
            path.chmod(0o755)


def test_a_cache_that_is_a_file_is_refused_before_any_work(
    tmp_path: Path, make_tree: MakeTree, build_log: Path
) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError):
        build_image(ImageSpec(kernel_source=make_tree()), Silent(), CacheLayout(tmp_path / "cache"))
    assert not build_log.exists()


def test_pruning_keeps_the_default_image_and_its_kernel(
    layout: CacheLayout, make_tree: MakeTree, build_log: Path
) -> None:
    build_image(ImageSpec(kernel_source=make_tree("old")), Silent(), layout)
    tree = make_tree("new", version=(6, 6, 1))
    image = build_image(ImageSpec(kernel_source=tree), Silent(), layout)
    (layout.downloads / "a_1_all.deb").write_bytes(bytes(100_000))
    assert prune(layout, Silent()) >= 100_000
    assert [one.image for one in list_images(layout, verify=True)] == [image]
    assert len(list(layout.kernels.iterdir())) == 1
    assert list(layout.downloads.iterdir()) == []
    build_image(ImageSpec(kernel_source=tree, force=True), Silent(), layout)
    assert build_log.read_text() == "built\nbuilt\n"


def test_pruning_everything_leaves_nothing(layout: CacheLayout, make_tree: MakeTree) -> None:
    build_image(ImageSpec(kernel_source=make_tree()), Silent(), layout)
    assert prune(layout, Silent(), everything=True) > 0
    assert left_over(layout) == []
    with pytest.raises(ImageNotBuilt):
        default_image(layout=layout)


def test_pruning_no_cache_makes_none(layout: CacheLayout) -> None:
    assert prune(layout, Silent()) == 0
    assert not layout.root.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImageSpec(arch="s390x"),
        lambda: ImageSpec(series="6.x"),
        lambda: ImageSpec(series="6"),
        lambda: ImageSpec(series=""),
        lambda: ImageSpec(jobs=0),
        lambda: ImageSpec(series="6.1", kernel_source=Path("/x")),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(make: Callable[[], ImageSpec]) -> None:
    with pytest.raises(BuildError) as caught:
        make()
    assert caught.value.remedy


def test_a_source_that_is_not_there_is_told_before_anything_is_asked_of_the_host(
    layout: CacheLayout, tmp_path: Path
) -> None:
    with pytest.raises(SourceUnavailable, match="does not exist"):
        build_image(ImageSpec(kernel_source=tmp_path / "nothing"), Silent(), layout)


def test_a_host_without_tools_is_told_all_it_lacks_at_once(
    layout: CacheLayout, make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequirementsMissing) as caught:
        build_image(ImageSpec(kernel_source=make_tree()), Silent(), layout)
    assert {"bc", "bison", "flex", "gcc", "gelf.h", "make", "xz"} <= set(caught.value.programs)
    assert "libelf-dev" in str(caught.value.remedy)


@pytest.mark.usefixtures("needs_kernel_tools")
def test_a_host_without_apt_is_told_to_bring_a_source(
    layout: CacheLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KERNEL_PROGRAMS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceUnavailable, match="no apt") as caught:
        build_image(ImageSpec(), Silent(), layout)
    assert "--kernel-source" in str(caught.value.remedy)
