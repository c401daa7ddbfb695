"""The pages are held to the code: links, Python, command line options, and files to be written."""

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import microvm.cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("microvm-*/README.md"), *ROOT.glob("docs/**/*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

OURS = {"microvm", "microvm_devices", "microvm_guest", "microvm_kvm", "microvm_qemu"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page that are in this language."""
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def as_module(code: str) -> str:
    """The block as it stands, or in an `async def` where it is a piece of one."""
    try:
        compile(code, "", "exec")
    except SyntaxError:
        return "async def main():\n" + textwrap.indent(code, "    ")
    return code


def anchors(page: Path) -> set[str]:
    """What may stand behind the # of a link to the page, as code forges make it of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_found() -> None:
    assert len(PAGES) > 15


@each_page
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    unlisted = {
        page
        for page in (ROOT / "docs").glob("**/*.md")
        if page not in linked and page != index and page.parent.parent.name != "examples"
    }
    assert not unlisted


@each_page
def test_every_python_block_compiles_as_it_stands_or_in_an_async_def(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(as_module(code), str(page), "exec")


@each_page
def test_every_name_that_a_page_imports_from_us_is_there(page: Path) -> None:
    imports = [
        node
        for code in blocks(page, "python")
        for node in ast.walk(ast.parse(as_module(code)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
    ]
    for node in imports:
        exec(ast.unparse(node), {})


# --- docs/cli.md -------------------------------------------------------------------------------

CLI = ROOT / "docs" / "cli.md"
COMMANDS = (
    ("run",),
    ("shell",),
    ("socks5",),
    ("ls",),
    ("console",),
    ("stats",),
    ("balloon",),
    ("stop",),
    ("doctor",),
    ("plugins",),
    ("image", "build"),
    ("image", "list"),
    ("image", "path"),
    ("image", "prune"),
)
OF_A_MACHINE = "Options of a machine"
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


def section(title: str) -> str:
    """The text under a heading of cli.md that begins so, without its examples."""
    (text,) = re.findall(
        rf"^## {re.escape(title)}\b.*?\n(.*?)(?=^## |\Z)", CLI.read_text(), re.MULTILINE | re.DOTALL
    )
    return FENCE.sub("", text)


def documented(title: str) -> set[str]:
    """The options in a section's code spans."""
    spans = re.findall(r"`([^`]+)`", section(title))
    return {option for span in spans for option in OPTION.findall(span)}


def in_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options in what ``--help`` prints, itself left out."""
    with pytest.raises(SystemExit):
        microvm.cli.main([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    heads = [line.strip().split("  ")[0] for line in lines if re.match(r"  -[a-z-]", line)]
    return {option for head in heads for option in OPTION.findall(head)} - {"--help", "-h"}


@each_command
def test_cli_md_names_exactly_the_options_that_the_help_does(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = in_help(words, capsys)
    told = documented("`microvm " + " ".join(words))
    if "--backend" in wanted and words != ("doctor",):
        told |= documented(OF_A_MACHINE)
    assert told == wanted


def test_cli_md_has_a_section_for_each_command() -> None:
    titles = re.findall(r"^## `microvm ([a-z0-9]+)", CLI.read_text(), re.MULTILINE)
    assert set(titles) == set(microvm.cli.COMMANDS)


# --- docs/plugins ---------------------------------------------------------------------------

TUTORIAL_FILE = re.compile(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    """The folder that docs/plugins.md and its pages describe."""
    docs = ROOT / "docs"
    for page in (docs / "plugins.md", *docs.glob("plugins/*.md")):
        for name, content in TUTORIAL_FILE.findall(page.read_text()):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return tmp_path


def test_the_plugins_of_the_tutorial_pass_their_tests(tutorial: Path) -> None:
    (tutorial / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    folders = [tutorial / name for name in ("microvm-dice", "microvm-demo")]
    path = os.pathsep.join(str(folder / "src") for folder in folders)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders],
        cwd=tutorial,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


EXAMPLE = ROOT / "docs" / "examples" / "microvm-dice"


def test_the_tutorials_device_is_the_example_to_the_byte(tutorial: Path) -> None:
    told = {
        str(path.relative_to(tutorial / EXAMPLE.name)): path.read_bytes()
        for path in (tutorial / EXAMPLE.name).rglob("*")
        if path.is_file()
    }
    there = {
        str(path.relative_to(EXAMPLE)): path.read_bytes()
        for path in EXAMPLE.rglob("*")
        if path.suffix in (".py", ".toml")
    }
    marker = there.pop("src/microvm_dice/__init__.py")
    assert told == there
    assert len(marker.splitlines()) == 1


def test_a_whole_device_is_under_a_hundred_lines() -> None:
    """From an empty folder to what is published: all that is needed, and its contract."""
    package = list(EXAMPLE.glob("src/microvm_dice/*.py"))
    assert len(package) == 3
    files = [EXAMPLE / "pyproject.toml", *package, EXAMPLE / "tests" / "test_contract.py"]
    assert sum(len(path.read_text().splitlines()) for path in files) < 100


def test_the_tutorials_entry_points_lead_to_its_plugins(tutorial: Path) -> None:
    found = [
        (path.parent / "src" / module.replace(".", "/")).with_suffix(".py")
        for path in tutorial.glob("*/pyproject.toml")
        for entries in tomllib.loads(path.read_text())["project"]["entry-points"].values()
        for module in entries.values()
    ]
    assert len(found) == 4
    for plugin in found:
        assert "@hookimpl" in plugin.read_text()


# --- README.md ---------------------------------------------------------------------------------


@pytest.mark.linux_guest
def test_the_readmes_example_prints_what_the_readme_says() -> None:
    # The VPN's is tried where there is a server: tests/guest/openvpn/test_tunnel_life.py.
    example, _ = blocks(ROOT / "README.md", "python")
    (output,) = blocks(ROOT / "README.md", "")
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    release = r"\d+\.\d+\.\d+-microvm"
    assert re.sub(release, "N", done.stdout) == re.sub(release, "N", output)


@pytest.mark.linux_guest
def test_the_guides_snippets_run_one_after_another_in_one_machine(tmp_path: Path) -> None:
    first, *others = blocks(ROOT / "docs" / "guide.md", "python")
    (stop,) = [code for code in others if "machine.stop()" in code]
    others.remove(stop)
    body = "".join([*others, stop])
    program = "import trio\nasync def main():\n" + textwrap.indent(
        first + textwrap.indent(body, "    "), "    "
    )
    done = subprocess.run(
        [sys.executable, "-c", program + "\ntrio.run(main)\n"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "powered-off" in done.stdout
