"""Disks of packages from end to end: a small apt, packages made by hand, real programs."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from microvm.cli import main
from microvm_guest.image.build import prune
from microvm_guest.image.cache import open_cache
from microvm_guest.image.composition import DiskSpec, compose
from microvm_guest.image.cpio import File
from microvm_guest.image.disks import find_disk
from microvm_guest.image.errors import (
    BuildError,
    ImageDamaged,
    ImageNotBuilt,
    SourceUnavailable,
)
from microvm_guest.image.layout import CacheLayout
from microvm_guest.image.listing import list_disks
from microvm_guest.image.packages import planned
from microvm_guest.image.progress import Silent
from microvm_guest.image.requirements import find_program

from .debs import deb, member

pytestmark = pytest.mark.skipif(
    find_program("mke2fs") is None or shutil.which("dpkg-deb") is None,
    reason="apt-get install e2fsprogs",
)

# What it is asked to install it lists whole: everything there is, if each name is known.
APT_GET = """\
#!/bin/sh
echo "$*" >> "$HOME/apt.log"
line() { # file hash
    echo "'http://host/$1' $(basename $1) $(stat -c %s "$1") $2"
}
found() { # name=version
    ls "${1%%=*}_$(echo "${1#*=}" | sed s/:/%3a/)"_*
}
cd "$HOME/repository" || exit 1
all="$*"
case "$*" in
*" install "*)
    for word in ${all##* install }; do
        case "$word" in [?]*) continue ;; esac
        ls ${word}_* >/dev/null 2>&1 || { echo "E: Unable to locate package $word"; exit 100; } >&2
    done
    for file in *.deb; do line $file MD5Sum:00; done ;;
"download --print-uris "*)
    for spec in ${all#download --print-uris }; do
        file=$(found $spec)
        line $file SHA256:$(sha256sum < $file | cut -c 1-64)
    done ;;
download*)
    for spec in $*; do
        case "$spec" in *=[0-9]*) cp $(found $spec) "$OLDPWD" ;; esac
    done ;;
esac
"""


class Repository:
    """A folder of packages, and what apt was asked."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "repository"
        self._folder.mkdir()

    def put(self, name: str, version: str, text: str) -> None:
        """Publish a version of a package with one file, in place of the one before."""
        for old in self._folder.glob(f"{name}_*"):
            old.unlink()
        deb(
            self._folder / f"{name}_{version}_all.deb",
            [member(f"./usr/share/{name}", text.encode())],
        )

    def take_log(self) -> list[str]:
        log = self._home / "apt.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "apt-get").write_text(APT_GET)
    (bin_folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Repository(tmp_path)
    made.put("one", "1.0", "first")
    made.put("lib-one", "2%3a1+b1", "library")
    return made


def spec(*packages: str, **fields: object) -> DiskSpec:
    values = {"packages": packages or ("one",), "format": "ext4", **fields}
    return DiskSpec(**values)  # type: ignore[arg-type]


def test_a_disk_has_the_packages_and_what_they_need(
    layout: CacheLayout, repository: Repository
) -> None:
    disk = compose(spec(), Silent(), layout)
    assert disk.packages == {"one": "1.0", "lib-one": "2:1+b1"}
    assert disk.format == "ext4"
    assert disk.path.stat().st_size == disk.size_bytes
    argv = [find_program("debugfs") or "", "-R", "cat /usr/share/one", str(disk.path)]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"first"
    assert list(layout.work.iterdir()) == []
    assert [one.damage for one in list_disks(layout, verify=True)] == [()]


def test_a_disk_that_is_there_is_found_without_asking_apt(
    layout: CacheLayout, repository: Repository
) -> None:
    disk = compose(spec("one", "lib-one"), Silent(), layout)
    repository.take_log()
    assert compose(spec("lib-one", "one", "one"), Silent(), layout) == disk
    assert repository.take_log() == []


def test_a_disk_that_is_there_is_had_while_somebody_builds_another(
    layout: CacheLayout, repository: Repository
) -> None:
    disk = compose(spec(name="mine"), Silent(), layout)
    with open_cache(layout, lambda text: pytest.fail(text)):
        assert compose(spec(), Silent(), layout) == disk
        assert compose(spec(name="mine"), Silent(), layout) == disk


def test_fresh_takes_a_new_version_and_the_same_one_is_not_built_again(
    layout: CacheLayout, repository: Repository
) -> None:
    first = compose(spec(), Silent(), layout)
    made = first.path.stat().st_ctime_ns
    assert compose(spec(fresh=True), Silent(), layout) == first
    assert first.path.stat().st_ctime_ns == made
    repository.put("one", "1.1", "second")
    second = compose(spec(fresh=True), Silent(), layout)
    assert second.packages["one"] == "1.1"
    assert second.id != first.id
    assert compose(spec(), Silent(), layout) == second
    assert "download -q" in "\n".join(repository.take_log())


@pytest.mark.parametrize(
    "other",
    [
        {"essential": False},
        {"trim": False},
        {"size_mib": 99},
        {"files": (File("etc/own", b"x"),)},
        {"files": (File("etc/own", b"y"),)},
        {"files": (File("etc/own", b"y", mode=0o755),)},
        {"format": "erofs"},
        {"packages": ("one", "lib-one")},
    ],
)
def test_whatever_is_asked_for_otherwise_is_another_request(other: dict[str, object]) -> None:
    assert spec(**other).request != spec().request
    assert spec(**other).request == spec(**other).request


def test_the_same_packages_make_the_same_disk_in_another_cache(
    layout: CacheLayout, repository: Repository, tmp_path: Path
) -> None:
    first = compose(spec(), Silent(), layout)
    time.sleep(1.1)  # a clock that comes into the image would show
    second = compose(spec(), Silent(), CacheLayout(tmp_path / "elsewhere"))
    assert first.id == second.id
    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_damaged_disk_is_built_again_as_it_was(
    layout: CacheLayout, repository: Repository
) -> None:
    disk = compose(spec(name="mine"), Silent(), layout)
    disk.path.unlink()
    with pytest.raises(ImageDamaged):
        find_disk("mine", layout)
    assert compose(spec(), Silent(), layout) == disk
    disk.path.chmod(0o644)
    disk.path.write_bytes(bytes(disk.size_bytes))
    assert "not what was built" in list_disks(layout, verify=True)[0].damage[0]
    assert compose(spec(force=True), Silent(), layout) == disk
    assert list_disks(layout, verify=True)[0].damage == ()


def test_a_copy_may_be_written_and_stands_in_nothings_place(
    layout: CacheLayout, repository: Repository, tmp_path: Path
) -> None:
    disk = compose(spec(), Silent(), layout)
    copy = disk.copy_to(tmp_path / "copy")
    assert copy.read_bytes() == disk.path.read_bytes()
    assert copy.stat().st_blocks * 512 < disk.size_bytes / 2  # sparse as it was
    with copy.open("r+b") as file:
        file.write(b"changed")
    assert list_disks(layout, verify=True)[0].damage == ()
    with pytest.raises(BuildError, match="there already"):
        disk.copy_to(copy)
    assert copy.read_bytes()[:7] == b"changed"


def test_a_name_means_one_disk_and_keeps_it_from_prune(
    layout: CacheLayout, repository: Repository
) -> None:
    with pytest.raises(ImageNotBuilt, match="no disk called mine"):
        find_disk("mine", layout)
    named = compose(spec(name="mine"), Silent(), layout)
    compose(spec("lib-one"), Silent(), layout)
    prune(layout, Silent())
    assert [one.id for one in list_disks(layout)] == [named.id]
    assert find_disk("mine", layout) == named
    repository.take_log()
    assert compose(spec(), Silent(), layout) == named
    assert repository.take_log() == []
    prune(layout, Silent(), everything=True)
    assert list_disks(layout) == []
    with pytest.raises(ImageNotBuilt):
        find_disk("mine", layout)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "A", "x" * 65])
def test_a_name_is_no_path(name: str, layout: CacheLayout) -> None:
    with pytest.raises(BuildError, match="can't be the name"):
        spec(name=name)
    with pytest.raises(BuildError):
        find_disk(name, layout)


def test_an_unknown_package_is_told_with_apts_words_and_leaves_nothing(
    layout: CacheLayout, repository: Repository
) -> None:
    with pytest.raises(SourceUnavailable, match="nosuch") as caught:
        compose(spec("nosuch"), Silent(), layout)
    assert "Unable to locate package nosuch" in str(caught.value.remedy)
    assert list(layout.work.iterdir()) == []
    assert list(layout.disks.iterdir()) == []


def test_a_host_without_apt_is_told_what_else_it_can_do(
    layout: CacheLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceUnavailable, match="no apt") as caught:
        compose(spec(), Silent(), layout)
    assert "start from" in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["-o", "one=1", "one:amd64", "One", "a", "?essential", "x y", ""])
def test_what_is_no_name_never_reaches_apt(name: str) -> None:
    with pytest.raises(BuildError, match="not the name of a package"):
        spec(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"packages": (), "essential": False},
        {"format": "zfs"},
        {"format": "erofs", "size_mib": 100},
        {"size_mib": 0},
        {"size_mib": 1 << 40},
    ],
)
def test_what_can_be_no_disk_is_refused_with_what_to_do(fields: dict[str, object]) -> None:
    with pytest.raises(BuildError) as caught:
        DiskSpec(**{"packages": ("one",), "format": "ext4", **fields})  # type: ignore[arg-type]
    assert caught.value.remedy


class Interrupt:
    """A progress that is Ctrl-C when a step begins."""

    def __init__(self, at: str) -> None:
        self._at = at

    def update(self, label: str, done: int, total: int) -> None:
        if label.startswith(self._at):
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


@pytest.mark.parametrize("step", ["asking", "fetching", "unpacking", "making"])
def test_an_interrupt_at_any_step_leaves_nothing_half(
    step: str, layout: CacheLayout, repository: Repository
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compose(spec(name="mine"), Interrupt(step), layout)
    for folder in (layout.work, layout.disks, layout.names, layout.pointers):
        assert list(folder.iterdir()) == []


BUILDER = """\
import sys
from pathlib import Path
from microvm_guest.image import CacheLayout, DiskSpec, Silent, compose
spec = DiskSpec(packages=("one",), format="ext4")
print(compose(spec, Silent(), CacheLayout(Path(sys.argv[1]))).id)
"""


def test_two_who_want_one_disk_at_once_get_one(layout: CacheLayout, repository: Repository) -> None:
    argv = [sys.executable, "-c", BUILDER, str(layout.root)]
    builders = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {builder.communicate()[0].strip() for builder in builders}
    assert ids == {one.id for one in list_disks(layout)}
    downloads = [line for line in repository.take_log() if line.startswith("download -q")]
    assert len(downloads) == 1


def test_apts_plan_is_read_to_versions() -> None:
    text = (
        "'http://h/p/libc6_2.36-9%2bdeb12u14_amd64.deb' libc6_2.36-9+deb12u14_amd64.deb 27 MD5:a\n"
        "'http://h/p/x_1%3a2_all.deb' x_1%3a2_all.deb 5 \n"
        "W: something else\n"
    )
    assert planned(text) == ["libc6=2.36-9+deb12u14", "x=1:2"]


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    layout: CacheLayout,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    monkeypatch.setenv("MICROVM_CACHE_DIR", str(layout.root))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["image", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_the_command_builds_names_lists_and_copies_a_disk(
    cli: Cli, layout: CacheLayout, tmp_path: Path
) -> None:
    code, out, err = cli("build", "--packages", "one,lib-one", "--format", "ext4", "--name", "mine")
    disk = find_disk("mine", layout)
    assert (code, out) == (0, f"{disk.path}\n")
    assert "microvm: unpacking the packages\n" in err
    assert cli("path", "--disk", "mine") == (0, f"{disk.path}\n", "")
    code, out, _ = cli("list")
    assert (code, out) == (
        0,
        f"  {disk.id}  disk  ext4  2 packages  {disk.size_bytes / 1e6:.1f} MB  mine\n",
    )
    (listed,) = json.loads(cli("list", "--json")[1])["disks"]
    assert (listed["names"], listed["packages"]["one"]) == (["mine"], "1.0")
    copy = tmp_path / "copy"
    words = ("build", "--packages", "lib-one,one", "--format", "ext4", "--output", str(copy))
    assert cli(*words) == (0, f"{copy}\n", "")
    assert copy.read_bytes() == disk.path.read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "ext4"), "--format is about a disk"),
        (("--packages", "one", "--series", "6.1"), "--series is about the kernel"),
    ],
)
def test_options_of_a_disk_and_of_a_kernel_are_not_mixed(
    words: tuple[str, ...], told: str, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli("build", *words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
