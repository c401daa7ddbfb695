"""``microvm image``: results on stdout, progress and errors on stderr."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from microvm.cli import main
from microvm_guest.image.images import default_image
from microvm_guest.image.layout import CacheLayout

MakeTree = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    layout: CacheLayout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    monkeypatch.setenv("MICROVM_CACHE_DIR", str(layout.root))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["image", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_build_prints_the_folder_and_tells_steps_on_stderr(
    cli: Cli, layout: CacheLayout, make_tree: MakeTree
) -> None:
    tree = str(make_tree())
    code, out, err = cli("build", "--kernel-source", tree, "--jobs", "1")
    image = default_image(layout=layout)
    assert (code, out) == (0, f"{image.path}\n")
    assert "microvm: building Linux 6.1.7\n" in err
    assert cli("build", "--kernel-source", tree) == (0, f"{image.path}\n", "")


def test_build_is_silent_when_asked(cli: Cli, make_tree: MakeTree) -> None:
    code, out, err = cli("build", "--quiet", "--json", "--kernel-source", str(make_tree()))
    assert (code, err) == (0, "")
    assert json.loads(out)["manifest"]["kernel"]["version"] == "6.1.7"


def test_path_names_the_parts_of_the_default_image(
    cli: Cli, layout: CacheLayout, make_tree: MakeTree
) -> None:
    cli("build", "--kernel-source", str(make_tree()))
    image = default_image(layout=layout)
    assert cli("path") == (0, f"{image.path}\n", "")
    assert cli("path", "kernel") == (0, f"{image.kernel}\n", "")
    assert cli("path", "compressed-kernel") == (0, f"{image.compressed_kernel}\n", "")
    assert cli("path", "initrd") == (0, f"{image.initrd}\n", "")
    assert json.loads(cli("path", "--json")[1])["initrd"] == str(image.initrd)


def test_list_tells_damage_and_fails_of_it(
    cli: Cli, layout: CacheLayout, make_tree: MakeTree
) -> None:
    cli("build", "--kernel-source", str(make_tree()))
    image = default_image(layout=layout)
    code, out, _ = cli("list")
    assert code == 0
    assert out.startswith(f"* {image.id}  x86_64  Linux 6.1.7  ")
    image.initrd.chmod(0o644)
    image.initrd.write_bytes(bytes(image.initrd.stat().st_size))
    assert cli("list")[0] == 0
    code, out, _ = cli("list", "--verify")
    assert code == 1
    assert "initrd.cpio is not what was built" in out
    (listed,) = json.loads(cli("list", "--verify", "--json")[1])["images"]
    assert listed["default"] is True
    assert len(listed["damage"]) == 1


def test_list_of_nothing_says_what_to_do(cli: Cli) -> None:
    code, out, err = cli("list")
    assert (code, out) == (0, "")
    assert "microvm image build" in err
    assert json.loads(cli("list", "--json")[1]) == {"images": [], "disks": []}


def test_prune_tells_what_became_free(cli: Cli, layout: CacheLayout, make_tree: MakeTree) -> None:
    cli("build", "--kernel-source", str(make_tree()))
    code, out, _ = cli("prune", "--all")
    assert code == 0
    assert "MB freed" in out
    assert json.loads(cli("prune", "--json")[1]) == {"freed_bytes": 0}
    code, out, err = cli("path")
    assert (code, out) == (125, "")
    assert "microvm image build" in err


def test_an_error_is_one_message_with_its_remedy(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("build", "--kernel-source", str(tmp_path / "nothing"))
    assert (code, out) == (125, "")
    assert "does not exist" in err
    assert "Traceback" not in err


def test_series_and_source_exclude_each_other(cli: Cli) -> None:
    with pytest.raises(SystemExit) as caught:
        cli("build", "--series", "6.1", "--kernel-source", "x")
    assert caught.value.code == 2


def test_without_microvm_guest_the_distribution_to_install_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "microvm_guest"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "microvm_guest", None)
    code, out, err = cli("list")
    assert (code, out) == (125, "")
    assert "pip install microvm-guest" in err
