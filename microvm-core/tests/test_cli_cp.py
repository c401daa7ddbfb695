"""``microvm cp``: which side is where, and what the copy is called."""

import pytest

from microvm.cli.cp import Place, full_destination, parse_place


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("notes.txt", Place(None, "notes.txt")),
        ("/a/b", Place(None, "/a/b")),
        ("web-1:/root/x", Place("web-1", "/root/x")),
        ("web-1:x", Place("web-1", "x")),
        ("./odd:name", Place(None, "./odd:name")),
        ("/a/odd:name", Place(None, "/a/odd:name")),
        (":/x", Place(None, ":/x")),
    ],
)
def test_a_name_and_a_colon_are_a_machines_and_all_else_is_here(word, place):
    assert parse_place(word) == place


def test_a_directory_gets_the_copy_by_its_own_name(tmp_path):
    source = Place("m", "/root/results/")
    assert full_destination(Place(None, str(tmp_path)), source).path == f"{tmp_path}/results"
    assert full_destination(Place(None, "new/"), source).path == "new/results"
    assert full_destination(Place(None, "new"), source).path == "new"
    there = full_destination(Place("m", "/root/"), Place(None, "a/notes.txt"))
    assert there == Place("m", "/root/notes.txt")
    assert full_destination(Place("m", "/root"), Place(None, "x")).path == "/root"


@pytest.mark.parametrize(
    "words", [("a", "b"), ("m:/a", "m:/b"), ("m:relative", "b"), ("a", "no-such-machine:/b")]
)
def test_what_makes_no_sense_is_told(words, capsys, monkeypatch, tmp_path):
    from microvm.cli import main

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["cp", *words]) == 125
    assert capsys.readouterr().err.startswith("microvm: ")
