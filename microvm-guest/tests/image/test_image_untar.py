"""Reading a package's archive: what deb(5) allows and nothing else, in bounded memory. Row 78."""

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.image.untar import BLOCK, PIECE_BYTES, Member, TarError, members

from .debs import folder, hard_link, member, symlink, tar

EVERY_KIND = [
    folder("./usr"),
    member("./usr/file", b"content" * 100, mode=0o4755, uid=0, gid=5),
    member("./usr/" + "long/" * 60 + "name", b"x"),
    hard_link("./usr/other", "./usr/file"),
    symlink("./usr/link", "../" * 60 + "far/away" * 8),
    member("./empty"),
]


def read_all(data: bytes, piece: int = 1 << 20) -> list[tuple[Member, bytes]]:
    stream = io.BytesIO(data)
    return [
        (one, b"".join(content)) for one, content in members(lambda n: stream.read(min(n, piece)))
    ]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("piece", [1, 7, 511, 1 << 20])
def test_what_was_written_is_read_in_pieces_of_any_size(kind: int, piece: int) -> None:
    # The older format has no long links, and a name is cut at a slash.
    given_members = [
        (info, data)
        for info, data in EVERY_KIND
        if kind == tarfile.GNU_FORMAT or len(info.name + info.linkname) < 100
    ]
    found = read_all(tar(given_members, kind), piece)
    kinds = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory"}
    kinds |= {tarfile.LNKTYPE: "hardlink", tarfile.SYMTYPE: "symlink"}
    assert found == [
        (
            Member(
                name=info.name + "/" * info.isdir(),
                kind=kinds[info.type],
                mode=info.mode,
                uid=info.uid,
                gid=info.gid,
                size=info.size,
                target=info.linkname,
            ),
            data,
        )
        for info, data in given_members
    ]


def test_a_ustar_prefix_is_part_of_the_name() -> None:
    name = "./" + "deep/" * 25 + "file"
    ((found, _),) = read_all(tar([member(name)], tarfile.USTAR_FORMAT))
    assert found.name == name


def test_content_that_nobody_reads_is_skipped() -> None:
    data = tar([member("./a", bytes(3 * PIECE_BYTES + 5)), member("./b", b"b")])
    stream = io.BytesIO(data)
    assert [one.name for one, _ in members(stream.read)] == ["./a", "./b"]


def test_an_archive_cut_off_anywhere_is_an_error_and_never_a_short_file() -> None:
    data = tar(EVERY_KIND[:4])
    whole = read_all(data)
    end = len(data.rstrip(b"\0")) + BLOCK  # behind the last member
    for length in range(0, end - BLOCK, 97):
        with pytest.raises(TarError):
            read_all(data[:length])
    assert read_all(data + b"trailing bytes") == whole


REFUSED = {
    "extended header": tar([member("./a" * 300, b"x")], tarfile.PAX_FORMAT),
    "sparse file": tar([member("./a", type=tarfile.GNUTYPE_SPARSE)]),
    "size over 8 GiB, in base 256": tar([member("./a")])[:124] + b"\x80" + bytes(387) + bytes(1024),
    "directory with content": tar([member("./a", b"x", type=tarfile.DIRTYPE)]),
    "not UTF-8": tar([member("./a\udcff")]),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_package_may_hold_is_refused(data: bytes) -> None:
    with pytest.raises(TarError):
        read_all(data)


def with_size(data: bytes, size: bytes) -> bytes:
    """The first header with another size, and its checksum right."""
    header = bytearray(data[:BLOCK])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[BLOCK:]


@pytest.mark.parametrize("size", [b"77777777777\0", b"-0000000001\0", b"\xff" * 12, b"0x10\0" * 2])
def test_a_size_that_lies_costs_nothing_and_is_found_out(size: bytes) -> None:
    lying = io.BytesIO(with_size(tar([member("./a", b"x")]), size.ljust(12, b"\0")))
    asked = []

    def read(count: int) -> bytes:
        asked.append(count)
        return lying.read(count)

    with pytest.raises(TarError):
        for _, content in members(read):
            for _ in content:
                pass
    assert max(asked) <= PIECE_BYTES


LONG = tar([member("./" + "a" * 200)])[: 2 * BLOCK]
"""A long name, without the member that it is of."""
HIDDEN = tar([member("./hidden", b"x")])


@pytest.mark.parametrize(
    "data",
    [
        LONG + LONG + tar([member("./b")]),
        LONG + bytes(2 * BLOCK),
        with_size(tar([symlink("./a", "b")])[:BLOCK], b"00000001000\0") + bytes(BLOCK) + HIDDEN,
    ],
    ids=["two-long-names", "for-nothing", "link-with-content"],
)
def test_what_two_readers_may_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(TarError):
        read_all(data)


def test_a_hard_link_has_no_content_whatever_size_it_tells() -> None:
    """Row 78: some programs put the file's size there (tar(5))."""
    data = with_size(tar([hard_link("./a", "./b")])[:BLOCK], b"00000001000\0") + HIDDEN
    (link, nothing), (hidden, content) = read_all(data)
    assert (link.kind, nothing) == ("hardlink", b"")
    assert (hidden.name, content) == ("./hidden", b"x")


def test_a_long_name_that_is_no_name_is_refused_before_it_is_read() -> None:
    name = with_size(tar([member("./" + "a" * 5000)]), b"00000011610\0")
    with pytest.raises(TarError, match="long name"):
        read_all(name)


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(tar([member("./a")]))
    data[0] ^= 1
    with pytest.raises(TarError, match="checksum"):
        read_all(bytes(data))


@given(st.binary(max_size=2000))
def test_any_bytes_are_an_archive_or_an_error(data: bytes) -> None:
    """Row 78, fuzzed."""
    with suppress(TarError):
        read_all(data)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=4))
def test_any_change_to_an_archive_is_an_archive_or_an_error(changes: list[tuple[int, int]]) -> None:
    """Row 78, fuzzed from something that is nearly right, checksums mended."""
    data = bytearray(tar(EVERY_KIND))
    for at, value in changes:
        data[at] = value
        start = at - at % BLOCK
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    try:
        found = read_all(bytes(data))
    except TarError:
        return
    assert sum(len(content) for _, content in found) <= len(data)
