"""Every row of the hazard catalogue has a test that bears its number, and no test invents one."""

import ast
import re
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "hazards.md"
ROWS = range(16, 101)
"""Those of registers, queues and devices; of files; of what programs and agents say; of a machine's
life."""

OWED: dict[int, str] = {73: "the loader of arm64 kernels, which there is not yet"}
"""Rows without a test yet, and whose they are. A row that has one is no longer owed."""

_MENTION = re.compile(r"[Rr]ows? (\d+(?:(?:, | and |, and | to )\d+)*)")
_NAME = re.compile(r"test_row_((?:\d+_)+)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """Every file with tests in it: those of each distribution, and the contracts."""
    found = [ROOT / "tests"]
    for distribution in ROOT.glob("microvm-*"):
        found.append(distribution / "tests")
        found.extend(distribution.glob("src/*/testing/*contract*"))
    return sorted(
        path
        for folder in found
        for path in folder.rglob("*.py")
        if path != Path(__file__) and ("contract" in str(path) or path.name.startswith("test_"))
    )


def numbers(mention: str) -> set[int]:
    """Of ``17, 19 to 21 and 23``."""
    rows: set[int] = set()
    for part in re.split(r", and |, | and ", mention):
        first, _, last = part.partition(" to ")
        rows.update(range(int(first), int(last or first) + 1))
    return rows


def does_something(test: Function) -> bool:
    """Whether there is more to it than words: an emptied test shows nothing."""
    return any(
        not isinstance(statement, ast.Pass)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in test.body
    )


def rows_of(text: str) -> set[int]:
    """The rows that a file's tests say they are about, each by its name or its docstring.

    What the file or a comment says does not count: it stays when the tests go.
    """
    rows: set[int] = set()
    for test in ast.walk(ast.parse(text)):
        if not isinstance(test, Function) or not test.name.startswith("test_"):
            continue
        if does_something(test):
            if named := _NAME.match(test.name):
                rows.update(map(int, named[1].split("_")[:-1]))
            for mention in _MENTION.findall(ast.get_docstring(test) or ""):
                rows |= numbers(mention)
    return rows


def found_rows() -> dict[int, list[Path]]:
    rows: dict[int, list[Path]] = {}
    for path in sources():
        for row in rows_of(path.read_text(encoding="utf-8")):
            rows.setdefault(row, []).append(path)
    return rows


def a_test(name: str = "test_it", docstring: str = "", body: str = "assert it()") -> str:
    return f'def {name}():\n    """{docstring}"""\n    {body}\n'


def test_mentions_are_understood() -> None:
    assert rows_of(a_test(docstring="Row 3.")) == {3}
    assert rows_of(a_test(docstring="Rows 17 to 19, 23 and 30: all.")) == {17, 18, 19, 23, 30}
    assert rows_of(f"async {a_test('test_row_34_the_used_length')}") == {34}
    assert rows_of(a_test("test_row_46_48_50_any_chains")) == {46, 48, 50}
    assert rows_of(a_test(docstring="a row of 12")) == set()
    assert rows_of(f"class TestIt:\n{textwrap.indent(a_test('test_row_17_it'), '    ')}") == {17}


def test_only_tests_that_do_something_count() -> None:
    assert rows_of('"""Rows 17 to 34."""') == set()
    assert rows_of(f"# --- rows 53 and 54: addresses\n{a_test()}") == set()
    assert rows_of(a_test("row_34_is_a_helper", "Row 34.")) == set()
    assert rows_of(a_test("test_row_34_it", "Row 34.", body="pass")) == set()
    assert rows_of(a_test("test_row_34_it", "Row 34.", body="...")) == set()


def test_every_row_has_a_test_or_somebody_who_owes_it() -> None:
    found = found_rows()
    missing = [row for row in ROWS if row not in found and row not in OWED]
    assert missing == [], "Write a test with `Row NN` in its docstring, or say who owes it in OWED."


def test_no_row_that_is_tested_is_owed() -> None:
    assert [row for row in OWED if row in found_rows()] == [], "Take them off OWED."


def test_the_page_has_every_row_once() -> None:
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.M)]
    assert listed == list(ROWS)


def test_every_device_of_ours_is_tried_by_the_contract() -> None:
    """Most rows of queues are its tests: they are worth what they are run on."""
    project = tomllib.loads((ROOT / "microvm-devices" / "pyproject.toml").read_text())["project"]
    devices = set(project["entry-points"]["microvm.devices"])
    tried = {
        name
        for path in (ROOT / "microvm-devices" / "tests").rglob("test_*contract.py")
        if "(VirtioDeviceContract):" in (text := path.read_text())
        for name in re.findall(r"^from microvm_devices\.(\w+)", text, re.MULTILINE)
    }
    assert devices
    assert devices - tried == set()
