"""The cache of what programs can do: a help, never a need."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_qemu._cache import MAX_ENTRIES, MAX_FILE_BYTES, ProgramCache, ProgramId, cache_file

QEMU = ProgramId("/usr/bin/qemu", 123, 456)


def test_what_was_put_is_there_for_the_next(tmp_path: Path) -> None:
    file = tmp_path / "new" / "programs.json"
    ProgramCache(file).put({QEMU: {"a": 1}})
    assert ProgramCache(file).get(QEMU) == {"a": 1}


@pytest.mark.parametrize(
    "other",
    [
        ProgramId("/usr/bin/qemu", 124, 456),
        ProgramId("/usr/bin/qemu", 123, 457),
        ProgramId("/usr/bin/qemu2", 123, 456),
    ],
)
def test_a_program_that_changed_is_not_known(tmp_path: Path, other: ProgramId) -> None:
    file = tmp_path / "programs.json"
    ProgramCache(file).put({QEMU: {"a": 1}})
    assert ProgramCache(file).get(other) is None


def test_the_id_follows_links_and_changes_with_the_file(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("one")
    link = tmp_path / "link"
    link.symlink_to(program)
    before = ProgramId.of(str(link))
    assert before == ProgramId.of(str(program))
    program.write_text("two!")
    assert ProgramId.of(str(link)) != before
    with pytest.raises(FileNotFoundError):
        ProgramId.of(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"schema": 2}',
        b'{"schema": 2, "programs": []}',
        b'{"schema": 99, "programs": {"/usr/bin/qemu": {"stamp": [123, 456], "facts": 1}}}',
        b'{"schema": 2, "programs": {"/usr/bin/qemu": 7}}',
        b'{"schema": 2, "programs": {"/usr/bin/qemu": {"facts": 1}}}',
        b'{"schema": 2, "programs": {"/usr/bin/qemu": {"stamp": "no", "facts": 1}}}',
        b"[" * 50_000,
        b"\xff" * 100,
        b" " * (MAX_FILE_BYTES + 1),
    ],
)
def test_a_spoilt_cache_is_an_empty_one_and_is_made_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "programs.json"
    file.write_bytes(content)
    cache = ProgramCache(file)
    assert cache.get(QEMU) is None
    cache.put({QEMU: True})
    assert ProgramCache(file).get(QEMU) is True


@given(content=st.binary(max_size=100))
def test_any_bytes_are_a_cache(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    assert ProgramCache(file).get(QEMU) is None


def test_a_fifo_in_its_place_does_not_hang(tmp_path: Path) -> None:
    file = tmp_path / "programs.json"
    os.mkfifo(file)
    assert ProgramCache(file).get(QEMU) is None


@pytest.mark.parametrize("place", ["file", "directory", "missing-under-file"])
def test_a_place_that_can_not_be_written_is_no_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    file = {
        "file": tmp_path / "file" / "programs.json",
        "directory": tmp_path / "directory",
        "missing-under-file": tmp_path / "file" / "x" / "programs.json",
    }[place]
    ProgramCache(file).put({QEMU: 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory", "file"]


def test_without_a_place_nothing_is_kept() -> None:
    cache = ProgramCache(None)
    cache.put({QEMU: 1})
    assert cache.get(QEMU) is None


def test_it_does_not_grow_without_bound(tmp_path: Path) -> None:
    file = tmp_path / "programs.json"
    for number in range(MAX_ENTRIES + 5):
        ProgramCache(file).put({ProgramId(f"/p{number}", 1, 1): number})
    programs = json.loads(file.read_text())["programs"]
    assert len(programs) == MAX_ENTRIES
    assert f"/p{MAX_ENTRIES + 4}" in programs


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MICROVM_CACHE_DIR": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c/programs.json"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/microvm/programs.json"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/microvm/programs.json"),
        ({}, None),
    ],
)
def test_it_lies_where_caches_lie(environ: dict[str, str], expected: Any) -> None:
    assert cache_file(environ) == (Path(expected) if expected else None)
