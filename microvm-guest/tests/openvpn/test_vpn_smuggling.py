"""What OpenVPN reads is what we have read: no directive hides from the allow-list. Row 93.

Held against a model of how OpenVPN itself reads a configuration (2.6's options_parse.c, buffer.c),
which works on bytes and knows nothing of our own reader; the model is held against the program.
"""

import io
import shutil
import subprocess
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microvm.forwards import TcpAddress
from microvm_guest.openvpn import directives, words
from microvm_guest.openvpn.config import parse_config
from microvm_guest.openvpn.effective import effective_config
from microvm_guest.openvpn.errors import VpnConfigError

LINE_SIZE = 256
"""OPTION_LINE_SIZE: a buffer, with the NUL."""
PARAMETER_SIZE = 256
MAX_PARAMETERS = 16
SPACE = b" \t\n\v\f\r\0"

Line = tuple[bytes, ...]


class NotReadable(Exception):
    """OpenVPN ends with an "Options error"."""


def lines_read(text: bytes) -> list[Line]:
    """What a file says: each directive's words; of a block, its name and its body.

    Lines within ``<connection>`` follow it, as ``connection`` and their own words.
    """
    file = io.BytesIO(text)
    found = []
    for line in _directives(partial(_fgets, file), partial(_fgets_in_block, file)):
        found.append(line)
        if line[0] == b"connection" and len(line) == 2:
            body = io.BytesIO(line[1])
            next_line = partial(_buf_parse, body)
            found += [(b"connection", *one) for one in _directives(next_line, next_line)]
    return found


def _fgets(file: io.BytesIO) -> bytes | None:
    """A line with its end. Its buffer has a byte more, and a line that fills it is refused."""
    line = file.readline(LINE_SIZE)
    if len(line.partition(b"\0")[0]) == LINE_SIZE:
        raise NotReadable("line too long")
    return line or None


def _fgets_in_block(file: io.BytesIO) -> bytes | None:
    """The same within a block: of a line as much as fits, and the rest is the next line."""
    return file.readline(LINE_SIZE - 1) or None


def _buf_parse(body: io.BytesIO) -> bytes | None:
    """The same of a text in memory, without its end; what does not fit loses two bytes."""
    line = bytearray()
    while True:
        byte = body.read(1)
        ends = byte in (b"", b"\n", b"\0")
        if len(line) >= LINE_SIZE:
            return bytes(line[: LINE_SIZE - 1])
        if ends:
            return None if byte == b"" and not line else bytes(line[: LINE_SIZE - 1])
        line += byte


def _directives(
    next_line: Callable[[], bytes | None], next_in_block: Callable[[], bytes | None]
) -> list[Line]:
    found = []
    first = True
    while (line := next_line()) is not None:
        words = parse_line(line.removeprefix(b"\xef\xbb\xbf") if first else line)
        first = False
        if not words:
            continue
        name = words[0]
        if len(name) >= 3 and name.startswith(b"--"):
            words[0] = name = name[2:]
        if len(words) == 1 and name[:1] == b"<" and name[-1:] == b">":
            words = [name[1:-1], _block(b"</" + name[1:-1] + b">", next_in_block)]
        found.append(tuple(words))
    return found


def _block(close_tag: bytes, next_line: Callable[[], bytes | None]) -> bytes:
    """All up to a line that *begins* with the tag; what stands behind the tag is passed over."""
    body = b""
    while (line := next_line()) is not None:
        line = line.partition(b"\0")[0]
        if line.lstrip(SPACE).startswith(close_tag):
            return body
        body += line
    raise NotReadable("the end tag is missing")


def parse_line(raw: bytes) -> list[bytes]:
    """The words of a line (parse_line): one step a character, with the NUL at the end."""
    words: list[bytes] = []
    word, state, backslash = bytearray(), "between", False
    for byte in raw.partition(b"\0")[0] + b"\0":
        out = None
        if not backslash and byte == 0x5C and state != "in ''":
            backslash = True
            continue
        done = False
        if state == "between":
            if byte not in SPACE:
                if byte in b";#":
                    break
                if not backslash and byte == 0x22:
                    state = 'in ""'
                elif not backslash and byte == 0x27:
                    state = "in ''"
                else:
                    out, state = byte, "in a word"
        elif state == "in a word":
            if not backslash and byte in SPACE:
                done = True
            else:
                out = byte
        elif state == 'in ""':
            if not backslash and byte == 0x22:
                done = True
            else:
                out = byte
        elif byte == 0x27:
            done = True
        else:
            out = byte
        if done:
            words.append(bytes(word))
            word, state = bytearray(), "between"
        if backslash and out and out not in b'\\"' + SPACE:
            raise NotReadable("bad backslash")
        backslash = False
        if out:
            if len(word) >= PARAMETER_SIZE:
                raise NotReadable("parameter too long")
            word.append(out)
        if len(words) >= MAX_PARAMETERS:
            break
    if state != "between":
        raise NotReadable("no closing quote")
    return words


# --- what we have read, and what it reads ----------------------------------------------------

PLAIN = "client\nremote a\nauth-user-pass\n<ca>\nx\n</ca>\n"
ALLOWED = directives.PASSED | directives.FILES | {"connection", "setenv"}
OWN = {line[0] for line in lines_read(effective_config(
    parse_config(f"{PLAIN}auth-user-pass\n", lambda name: b""), TcpAddress(port=1)
).encode())} - {b"client", b"remote", b"ca"}  # fmt: skip


def accepted(text: str, file: bytes | None = None) -> bool:
    """Whether it is; and then it is read in the guest as it was here, and as nothing else."""

    def read_file(name: str) -> bytes:
        if file is None:
            raise FileNotFoundError(2, "No such file or directory")
        return file

    try:
        config = parse_config(text, read_file)
    except VpnConfigError:
        return False
    wanted: list[Line] = []
    for one in config.directives:
        assert one.name in ALLOWED
        if one.inline is None:
            wanted.append(tuple(word.encode() for word in one.words))
            continue
        wanted.append((one.name.encode(), one.inline.encode()))
        if one.name == "connection":
            for line in one.inline.splitlines():
                inner = words.split(line)
                assert inner[0] in directives.PASSED | {"setenv"}
                wanted.append((b"connection", *(word.encode() for word in inner)))
    read = lines_read(effective_config(config, None).encode())
    own = read[: len(read) - len(wanted)]
    assert read[len(own) :] == wanted
    assert {line[0] for line in own} <= OWN
    return True


@given(st.text(st.sampled_from("ab \t\v\f\r\"'\\#;-<>\u00e9\x85"), max_size=30))
def test_a_line_is_read_as_openvpn_reads_it(line: str) -> None:
    """Where both can read it: OpenVPN ends at a backslash before most characters, we don't."""
    try:
        ours, theirs = words.split(line), parse_line(line.encode())
    except (ValueError, NotReadable):
        return
    assert [word.encode() for word in ours] == theirs


SMUGGLED = "script-security 2\nup /bin/sh"
PIECES = st.sampled_from(
    ["<ca>", "</ca>", " </ca>", "</ca>.", "</ca> <ca>", "x</ca>", "</ca", "<connection>",
     "</connection>", "</connection>x", "remote b 1", "port 2", "up /bin/sh", "script-security 2",
     "auth '\\", "setenv UV_X", "setenv UV_\\\\", '"', "'", "\\", " ", "#", ";", "--", "\t",
     "\v", "\f", "\x85", "\u2028", "\0", "\ufeff", "\u00e9", "x" * 120, "x" * 200, "x" * 250,
     "\\x" * 120, " " * 250, "cipher ", "peer-fingerprint", "<peer-fingerprint>",
     "</peer-fingerprint>"]
)  # fmt: skip
LINES = st.lists(PIECES, max_size=4).map("".join)


@st.composite
def blocks(draw: st.DrawFn) -> str:
    """A block, perhaps with what nearly is its end within."""
    tag = draw(st.sampled_from(["ca", "connection", "peer-fingerprint"]))
    near = st.sampled_from(
        [f"</{tag}>.", f"x</{tag}>", f"</{tag}> <{tag}>", "x" * 255 + f"</{tag}>"]
    )
    inner = st.one_of(LINES, near, st.just("up /bin/sh"), st.just(f"<{tag}>"))
    return "\n".join([f"<{tag}>", *draw(st.lists(inner, max_size=6)), f"</{tag}>"])


TEXTS = st.lists(st.one_of(LINES, blocks()), max_size=8).map("\n".join)


@settings(max_examples=400)
@given(TEXTS)
@example(f"<ca>\nx\n</ca>.\n{SMUGGLED}\n<ca>\ny\n</ca>")
@example(f"<ca>\n{'x' * 255}</ca>\n{SMUGGLED}\n<ca>\ny\n</ca>")
@example(f"<connection>\nremote b\nsetenv UV_X {'x' * 240}\nport 1\n</connection>")
@example("cipher " + "\\x" * 124)
@example("cipher " + "\u00e9" * 124)
@example("setenv UV_X '" + '"' * 125 + "'" + SMUGGLED.partition("\n")[2])
def test_openvpn_reads_what_we_have_read(text: str) -> None:
    accepted(PLAIN + text + "\n")


@settings(max_examples=100)
@given(TEXTS)
@example("x\n</ca>\nup /bin/sh\n<ca>")
@example("x" * 255 + "</ca>\nup /bin/sh\n<ca>")
@example("x\0</ca>\nup /bin/sh")
def test_a_files_contents_are_nothing_but_its_block(contents: str) -> None:
    accepted("client\nremote a\nauth-user-pass\nca f\n", contents.encode())


@pytest.mark.parametrize("length", range(250, 260))
@pytest.mark.parametrize(
    "line", ["cipher {}", "<connection>\nremote b\ncipher {}\n</connection>", "<ca>\n{}\n</ca>"]
)
def test_lines_about_as_long_as_openvpns_own(line: str, length: int) -> None:
    """A directive of 254 bytes passes, a longer one does not; a block's lines may be longer."""
    text = line.format("x" * (length - len("cipher ")))
    assert accepted(f"{PLAIN}{text}\n") == (length <= 254 or line.startswith("<ca>"))


@pytest.mark.parametrize("within", ["{}", "<connection>\nremote b\n{}\n</connection>"])
def test_a_line_is_as_long_as_it_is_written_in_the_guest(within: str) -> None:
    """A quote takes two bytes there."""
    for quotes, good in ((120, True), (130, False)):
        line = "setenv UV_X '" + '"' * quotes + "'"
        assert len(line) <= 254
        assert accepted(PLAIN + within.format(line) + "\n") == good


def test_the_model_sees_what_is_smuggled() -> None:
    text = f"<ca>\nx\n</ca>.\n{SMUGGLED}\n".encode()
    assert lines_read(text) == [(b"ca", b"x\n"), (b"script-security", b"2"), (b"up", b"/bin/sh")]


@pytest.mark.skipif(shutil.which("openvpn") is None, reason="needs openvpn")
@pytest.mark.parametrize(
    "text",
    [
        "<ca>\nx\n</ca>.\nno-such-thing\n",
        "<ca>\n" + "x" * 255 + "</ca>\nno-such-thing\n",
        "<connection>\nremote a\n" + "#" * 257 + "no-such-thing\n</connection>\n",
        '"no-such-thing"x\n',
    ],
)
def test_the_model_reads_as_the_real_one_does(text: str) -> None:
    """What the model finds in it, the program stumbles over."""
    found = [line for line in lines_read(text.encode()) if b"no-such-thing" in line]
    assert found, "the model does not see it"
    done = subprocess.run(
        ["openvpn", "--config", "stdin"], input=text.encode(), capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"Unrecognized option" in done.stdout
    assert b"no-such-thing" in done.stdout


@pytest.mark.skipif(shutil.which("openvpn") is None, reason="needs openvpn")
@pytest.mark.parametrize("length", [254, 255, 256])
def test_the_model_refuses_the_lines_that_the_real_one_refuses(length: int) -> None:
    text = f"{'cipher':x<{length}}\n".encode()
    done = subprocess.run(
        ["openvpn", "--config", "stdin"], input=text, capture_output=True, check=False
    )
    if b"line length" not in done.stdout:
        assert lines_read(text) == [(text.rstrip(),)]
        assert length <= 254
    else:
        with pytest.raises(NotReadable, match="too long"):
            lines_read(text)
