"""What of packages comes together on a disk, and what can't. Rows 77 and 78."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.image.cpio import Directory, Symlink
from microvm_guest.image.tree import HardLink, Stored, Tree, TreeError, place_of, safe_mode
from microvm_guest.image.untar import Member


def entry(name: str, kind: str = "file", **fields: object) -> Member:
    values = {"mode": 0o755 if kind == "directory" else 0o644, "uid": 0, "gid": 0, "size": 0}
    return Member(**{"name": name, "kind": kind, "target": "", **values, **fields})  # type: ignore[arg-type]


def tree_of(*members: Member, trim: bool = True) -> Tree:
    tree = Tree(trim=trim)
    for one in members:
        tree.add(one, "some-package")
    return tree


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("./", None),
        (".", None),
        ("./etc/passwd", "etc/passwd"),
        ("etc/", "etc"),
        ("./bin/sh", "usr/bin/sh"),
        ("./lib64/ld.so", "usr/lib64/ld.so"),
        ("./bin", None),
        ("./sbin/", None),
        ("./binary/x", "binary/x"),
    ],
)
def test_a_name_has_one_place_and_bin_is_below_usr(name: str, place: str | None) -> None:
    assert place_of(name) == place


BAD_NAMES = [
    "../etc/passwd", "./../x", "./a/../../x", "/etc/passwd", ".//etc", "./a//b", "./a/./b",
    "./a\nb", "./a\x7f", "./" + "n" * 5000, "./lib/../../x",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "hardlink"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, kind: str) -> None:
    """Row 77: ``..``, absolute names, overlong ones."""
    with pytest.raises(TreeError):
        tree_of(entry(name, kind, target="x"))


def test_a_file_below_a_link_is_refused_in_either_order() -> None:
    """Row 77: symlink-then-file."""
    link, file = entry("./a", "symlink", target="/etc"), entry("./a/passwd")
    with pytest.raises(TreeError, match="no directory"):
        tree_of(link, file)
    with pytest.raises(TreeError, match="as well"):
        tree_of(file, link)


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "./missing", "./folder", "./link"])
def test_a_hard_link_is_to_a_file_of_the_tree(target: str) -> None:
    """Row 77: hardlink out."""
    with pytest.raises(TreeError):
        tree_of(
            entry("./folder", "directory"),
            entry("./link", "symlink", target="/etc/passwd"),
            entry("./other", "hardlink", target=target),
        )


def test_a_hard_link_counts_and_one_to_it_is_one_to_the_file() -> None:
    tree = tree_of(
        entry("./usr/bin/perl", size=3),
        entry("./bin/perl5", "hardlink", target="./usr/bin/perl"),
        entry("./bin/perl6", "hardlink", target="./bin/perl5"),
    )
    assert tree.get("usr/bin/perl") == Stored("usr/bin/perl", 0o644, 3, links=3)
    assert tree.get("usr/bin/perl6") == HardLink("usr/bin/perl6", "usr/bin/perl")


def test_a_device_is_refused() -> None:
    """Row 77: device nodes."""
    with pytest.raises(TreeError, match="device"):
        tree_of(entry("./dev/sda", "device"))


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"mode": 0o4755}, 0o4755),
        ({"mode": 0o4755, "uid": 7}, 0o755),
        ({"mode": 0o2755, "gid": 5}, 0o755),
        ({"mode": 0o6755, "gid": 5}, 0o4755),
        ({"mode": 0o2755}, 0o2755),
        ({"mode": 0o3777, "kind": "directory"}, 0o1777),
    ],
)
def test_a_program_of_anybody_elses_does_not_become_one_of_roots(
    fields: dict[str, object], mode: int
) -> None:
    """Row 77: setuid."""
    assert safe_mode(entry("./x", **fields)) == mode  # type: ignore[arg-type]


def test_two_packages_with_one_file_are_told_by_name() -> None:
    tree = Tree()
    tree.add(entry("./etc/conf"), "one")
    with pytest.raises(TreeError, match="in one as well"):
        tree.add(entry("./etc/conf"), "other")


def test_who_brings_a_directory_first_says_what_it_is_like() -> None:
    tree = tree_of(
        entry("./var/mail/file"),
        entry("./var/mail", "directory", mode=0o700),
        entry("./var/mail", "directory", mode=0o777),
    )
    assert tree.get("var/mail") == Directory("var/mail", mode=0o700)
    assert tree.get("var") == Directory("var")


def test_the_same_link_twice_is_one() -> None:
    link = entry("./a", "symlink", target="b")
    assert list(tree_of(link, link).entries()) == [Symlink("a", "b")]
    with pytest.raises(TreeError):
        tree_of(link, entry("./a", "symlink", target="c"))


def test_documentation_stays_out_and_licences_stay_in() -> None:
    names = ["./usr/share/man/man1/x.1", "./usr/share/doc/x/README", "./usr/share/doc/x/copyright"]
    assert tree_of(*map(entry, names)).names_below("usr") == ["usr/share/doc/x/copyright"]
    assert len(tree_of(*map(entry, names), trim=False).names_below("usr")) == 3


def test_links_come_last_and_a_parent_before_what_is_in_it() -> None:
    tree = tree_of(
        entry("./a", "symlink", target="b"),
        entry("./b/c/d"),
        entry("./b/e", "hardlink", target="./b/c/d"),
    )
    kinds = [(type(one).__name__, one.name) for one in tree.entries()]
    assert kinds == [
        ("Directory", "b"), ("Directory", "b/c"), ("Stored", "b/c/d"), ("HardLink", "b/e"),
        ("Symlink", "a"),
    ]  # fmt: skip


COMPONENTS = st.sampled_from(["a", "b", "bin", "usr", "..", ".", "", "c\0", "\n", "é"])
NAMES = st.lists(COMPONENTS, max_size=5).map("/".join)
KINDS = st.sampled_from(["file", "hardlink", "symlink", "directory", "device"])


@given(st.lists(st.builds(entry, NAMES, KINDS, target=NAMES), max_size=30))
def test_whatever_comes_every_parent_is_a_directory_of_the_tree(members: list[Member]) -> None:
    """Rows 77 and 78, fuzzed."""
    tree = Tree()
    for one in members:
        try:
            tree.add(one, "package")
        except TreeError:
            continue
    entries = list(tree.entries())
    by_name = {one.name: one for one in entries}
    assert len(by_name) == len(entries)
    for one in entries:
        parts = one.name.split("/")
        assert not {"", ".", ".."} & set(parts)
        for depth in range(1, len(parts)):
            assert isinstance(by_name["/".join(parts[:depth])], Directory)
        if isinstance(one, HardLink):
            assert isinstance(by_name[one.target], Stored)
