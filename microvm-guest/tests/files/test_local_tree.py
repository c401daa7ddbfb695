"""What a hostile guest sends, made into files of the host's: beneath the target or not at all.

Rows 77, 78, 79 and 87.
"""

import contextlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.abc import CopyLimits
from microvm.errors import GuestError
from microvm_guest.files.receiving import LocalTree
from microvm_guest.protocol.frames import ProtocolViolation
from microvm_guest.protocol.records import Entry, Record, RecordKind, RecordReader, is_one_name

END = Record(RecordKind.END)
DONE = Record(RecordKind.DONE)


def record(entry):
    reader = RecordReader()
    reader.feed(entry.encode())
    return reader.next_record()


def file(name=b"", mode=0o644, mtime_ns=0):
    return record(Entry(kind=RecordKind.FILE, mode=mode, mtime_ns=mtime_ns, name=name))


def directory(name=b"", mode=0o755, mtime_ns=0):
    return record(Entry(kind=RecordKind.DIRECTORY, mode=mode, mtime_ns=mtime_ns, name=name))


def link(name, target):
    return record(Entry(kind=RecordKind.SYMLINK, mode=0o777, mtime_ns=0, name=name, target=target))


def data(content):
    return Record(RecordKind.DATA, content)


def make(target, *records, limits=None):
    """All of it, and what becomes of it; nothing of ours is left beside the target."""
    tree = LocalTree(target, limits or CopyLimits())
    try:
        for it in records:
            tree.feed(it)
        return tree.commit() if tree.done else None
    finally:
        tree.abandon()
        tree.abandon()
        assert [n for n in os.listdir(target.parent) if n.startswith(".microvm-")] == []


def test_a_tree_is_made(tmp_path):
    report = make(
        tmp_path / "out",
        directory(),
        file(b"x", mode=0o600, mtime_ns=10**18),
        data(b"a"),
        data(b"b"),
        END,
        link(b"l", b"x"),
        directory(b"d"),
        END,
        Record(RecordKind.SKIPPED, b"pipe"),
        END,
        DONE,
    )
    assert (report.entries, report.bytes, report.skipped) == (4, 2, ("pipe",))
    assert (tmp_path / "out/x").read_bytes() == b"ab"
    assert (tmp_path / "out/x").stat().st_mtime_ns == 10**18
    assert os.readlink(tmp_path / "out/l") == "x"


def test_row_77_a_link_is_never_gone_through(tmp_path):
    (tmp_path / "outside").mkdir()
    for through in (
        [directory(b"l"), file(b"x")],
        [file(b"l"), data(b"x")],
        [link(b"l", b"other")],
    ):
        with pytest.raises(ProtocolViolation, match="two entries of one name"):
            make(tmp_path / "out", directory(), link(b"l", b"../outside"), *through)
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(tmp_path / "outside") == []


def test_a_link_that_is_there_is_replaced_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").symlink_to("mine")
    make(tmp_path / "out", file(), data(b"theirs"), END, DONE)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "out").read_text() == "theirs"


def test_row_79_a_target_that_becomes_a_link_meanwhile_is_replaced_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    tree = LocalTree(tmp_path / "out", CopyLimits())
    tree.feed(file())
    (tmp_path / "out").symlink_to("mine")
    for it in (data(b"x"), END, DONE):
        tree.feed(it)
    tree.commit()
    tree.abandon()
    assert (tmp_path / "out").read_bytes() == b"x"
    assert os.listdir(tmp_path / "mine") == []


def test_row_79_a_directory_that_is_moved_away_meanwhile_takes_the_copy_with_it(tmp_path):
    """What is open stays what it is: a link put in its place is not gone through."""
    (tmp_path / "place").mkdir()
    (tmp_path / "elsewhere").mkdir()
    tree = LocalTree(tmp_path / "place/out", CopyLimits())
    tree.feed(directory())
    (tmp_path / "place").rename(tmp_path / "moved")
    (tmp_path / "place").symlink_to("elsewhere")
    for it in (file(b"x"), END, END, DONE):
        tree.feed(it)
    tree.commit()
    tree.abandon()
    assert os.listdir(tmp_path / "elsewhere") == []
    assert os.listdir(tmp_path / "moved/out") == ["x"]


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o7777])
def test_set_user_id_and_its_like_do_not_come_out(tmp_path, mode):
    make(tmp_path / "file", file(mode=mode), END, DONE)
    make(tmp_path / "dir", directory(mode=mode), END, DONE)
    for name in ("file", "dir"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) & ~0o777 == 0


def test_the_umask_is_heeded_and_the_owner_can_always_remove_it(tmp_path):
    old = os.umask(0o027)
    try:
        make(tmp_path / "file", file(mode=0o666), END, DONE)
        make(tmp_path / "dir", directory(mode=0o007), END, DONE)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "dir").stat().st_mode) == 0o700


@pytest.mark.parametrize("mtime_ns", [-(2**63), -1, 2**63 - 1])
def test_times_that_no_file_can_have_are_let_be(tmp_path, mtime_ns):
    make(tmp_path / "out", file(mtime_ns=mtime_ns), END, DONE)
    assert (tmp_path / "out").stat().st_mtime_ns > 1.6e18


@pytest.mark.parametrize(
    "records",
    [
        [DONE],
        [END],
        [data(b"x")],
        [Record(RecordKind.SKIPPED, b"x")],
        [Record(RecordKind.INFO, bytes(30))],
        [link(b"", b"/etc/passwd"), DONE],
        [directory(), DONE],
        [directory(), data(b"x")],
        [directory(), END, END],
        [directory(), END, directory()],
        [directory(), END, DONE, DONE],
        [directory(), Record(RecordKind.END, b"x")],
        [directory(), Record(RecordKind.SKIPPED, b"../x")],
        [file(), directory(b"x")],
        [file(), file(b"x")],
        [file(), Record(RecordKind.SKIPPED, b"x")],
        [directory(), file(b"x"), END, file(b"x")],
        [directory(), record(Entry(kind=RecordKind.FILE, mode=0, mtime_ns=0, name=b"../x"))],
        [directory(), record(Entry(kind=RecordKind.FILE, mode=0, mtime_ns=0, name=b"/x"))],
    ],
)
def test_records_where_there_can_be_none_leave_nothing(tmp_path, records):
    with pytest.raises(ProtocolViolation):
        make(tmp_path / "out", *records)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("limits", "records"),
    [
        (CopyLimits(max_bytes=3), [file(), data(b"xx"), data(b"yy")]),
        (CopyLimits(max_entries=2), [directory(), link(b"1", b"x"), link(b"2", b"x")]),
        (
            CopyLimits(max_entries=2),
            [directory(), *[Record(RecordKind.SKIPPED, b"x")] * 2],
        ),
        (CopyLimits(max_depth=2), [directory(), directory(b"d"), directory(b"d")]),
    ],
)
def test_row_78_more_than_the_limits_allow_is_the_guests_error(tmp_path, limits, records):
    with pytest.raises(GuestError, match="nothing of it was kept"):
        make(tmp_path / "out", *records, limits=limits)
    make(tmp_path / "out", *records[:-1], limits=limits)
    assert os.listdir(tmp_path) == []


def test_what_the_limits_just_allow_is_made(tmp_path):
    limits = CopyLimits(max_bytes=3, max_entries=2, max_depth=1)
    report = make(
        tmp_path / "out", directory(), file(b"x"), data(b"xxx"), END, END, DONE, limits=limits
    )
    assert (report.entries, report.bytes) == (2, 3)


def test_row_77_a_links_time_is_its_own(tmp_path):
    (tmp_path / "mine").touch()
    before = (tmp_path / "mine").stat().st_mtime_ns
    late = Entry(kind=RecordKind.SYMLINK, mode=0o777, mtime_ns=5, name=b"l", target=b"../mine")
    make(tmp_path / "out", directory(), record(late), END, DONE)
    assert (tmp_path / "out/l").lstat().st_mtime_ns == 5
    assert (tmp_path / "mine").stat().st_mtime_ns == before


def test_names_of_what_is_skipped_are_counted_and_not_all_kept(tmp_path):
    skipped = [Record(RecordKind.SKIPPED, b"x%d" % n) for n in range(3000)]
    report = make(tmp_path / "out", directory(), *skipped, END, DONE)
    assert (report.entries, len(report.skipped)) == (1, 1000)


@pytest.mark.parametrize("path", ["..", "/", "a/.."])
def test_a_target_without_a_name_is_refused(path):
    with pytest.raises(IsADirectoryError):
        LocalTree(Path(path), CopyLimits())


# --- any records -----------------------------------------------------------------------------

NAMES = st.sampled_from([b"", b"a", b"b", b"c", b"..", b".", b"a/b", b"/tmp/x", b"\xff"])
entries = st.builds(
    lambda kind, name, mode, target: record(
        Entry(kind=kind, mode=mode, mtime_ns=0, name=name, target=target)
    ),
    st.sampled_from([RecordKind.FILE, RecordKind.DIRECTORY, RecordKind.SYMLINK]),
    NAMES,
    st.sampled_from([0, 0o644, 0o7777]),
    st.sampled_from([b"..", b"../outside", b"/", b"a", b"", b"."]),
)
steps = st.one_of(
    entries,
    entries,
    st.just(END),
    st.builds(data, st.binary(max_size=20)),
    st.builds(Record, st.sampled_from(list(RecordKind)), st.binary(max_size=30)),
)


@given(st.lists(steps, max_size=30))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_comes_nothing_is_made_but_beneath_the_target(tmp_path_factory, records):
    place = tmp_path_factory.mktemp("place")
    (place / "outside").mkdir()
    (place / "outside/mine").write_text("mine")
    try:
        make(place / "in", directory(), *records, END, DONE)
    except (ProtocolViolation, GuestError):
        assert not (place / "in").exists()
    assert set(os.listdir(place)) <= {"in", "outside"}
    assert os.listdir(place / "outside") == ["mine"]
    assert (place / "outside/mine").read_text() == "mine"
    for _, directories, files in os.walk(place / "in"):
        assert all(is_one_name(os.fsencode(name)) for name in directories + files)


@given(st.lists(steps, max_size=12))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_descriptor_stays_open_whatever_comes(tmp_path, records):
    before = os.listdir("/proc/self/fd")
    with contextlib.suppress(ProtocolViolation, GuestError, OSError):
        make(tmp_path / "in", *records)
    assert os.listdir("/proc/self/fd") == before
