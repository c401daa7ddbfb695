"""Every row of the hazard catalogue has a test that bears its number, and no test invents one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "hazards.md"
ROWS = range(16, 67)
"""Those of registers, queues and devices: the others are not about what a device is sent."""

OWED: dict[int, str] = {}
"""Rows without a test yet, and whose they are. A row that has one is no longer owed."""

_MENTION = re.compile(r"[Rr]ows? (\d+(?:(?:, | and |, and | to )\d+)*)")
_NAME = re.compile(r"def test_row_(\d+)")


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


def rows_of(text: str) -> set[int]:
    """The rows that a file's tests say they are about."""
    rows = {int(number) for number in _NAME.findall(text)}
    for mention in _MENTION.findall(text):
        rows |= numbers(mention)
    return rows


def found_rows() -> dict[int, list[Path]]:
    rows: dict[int, list[Path]] = {}
    for path in sources():
        for row in rows_of(path.read_text(encoding="utf-8")):
            rows.setdefault(row, []).append(path)
    return rows


def test_mentions_are_understood() -> None:
    assert rows_of('"""Row 3."""') == {3}
    assert rows_of("# --- rows 53 and 54: addresses") == {53, 54}
    assert rows_of("Rows 17 to 19, 23 and 30") == {17, 18, 19, 23, 30}
    assert rows_of("async def test_row_34_the_used_length") == {34}
    assert rows_of("a row of 12") == set()


def test_every_row_has_a_test_or_somebody_who_owes_it() -> None:
    found = found_rows()
    missing = [row for row in ROWS if row not in found and row not in OWED]
    assert missing == [], "Write a test with `Row NN` in its docstring, or say who owes it in OWED."


def test_no_row_that_is_tested_is_owed() -> None:
    assert [row for row in OWED if row in found_rows()] == [], "Take them off OWED."


def test_the_page_has_every_row_once() -> None:
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.M)]
    assert listed == list(ROWS)
