"""What of the lab can be told without starting it."""

import lzma
import shlex
import struct
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tools.lab.bzimage import vmlinux  # noqa: E402 - the path comes first
from tools.lab.console import KEPT_LINES, UP, Console  # noqa: E402
from tools.lab.machine import (  # noqa: E402
    Machine,
    command_script,
    environment,
    initramfs,
    qemu_argv,
)
from tools.lab.modules import built_in, depends, load_order, module_name, plain  # noqa: E402
from tools.lab.words import Words  # noqa: E402

TOKEN = "0123456789abcdef"
MARK = b"\0lab 0123456789abcdef 3\n"


def module(*needs: str) -> bytes:
    return b"\x7fELF..\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


class TestModules:
    def test_a_name_has_no_folder_no_suffix_and_underscores(self) -> None:
        assert module_name("kernel/arch/x86/kvm/kvm-amd.ko") == "kvm_amd"
        assert module_name("kvm-amd.ko.xz") == "kvm_amd"

    def test_a_module_says_what_it_depends_on(self) -> None:
        assert depends(module("kvm", "ccp")) == ("kvm", "ccp")
        assert depends(module()) == ()
        assert depends(b"\x7fELF") == ()

    def test_each_comes_once_behind_all_it_needs(self) -> None:
        tree = {"a": module("b", "c"), "b": module("d"), "c": module("d"), "d": module()}
        files = {name: name for name in tree}
        order = load_order(["a", "c"], files=files, builtin=frozenset(), read=tree.__getitem__)
        assert list(order) == ["d", "b", "c", "a"]

    def test_what_is_built_in_is_not_loaded(self) -> None:
        builtin = built_in("kernel/drivers/char/hw-random/rng-core.ko\nkernel/fs/ext2.ko\n")
        tree = {"virtio_rng": module("rng_core")}
        order = load_order(
            ["virtio_rng"],
            files={"virtio_rng": "virtio_rng"},
            builtin=builtin,
            read=tree.__getitem__,
        )
        assert list(order) == ["virtio_rng"]

    def test_a_module_that_is_nowhere_is_an_error_with_its_name(self) -> None:
        with pytest.raises(KeyError, match="kvm_amd"):
            load_order(["kvm_amd"], files={}, builtin=frozenset(), read=lambda _file: b"")

    def test_a_compressed_module_is_unpacked(self) -> None:
        assert plain("x.ko.xz", lzma.compress(module())) == module()
        assert plain("x.ko", module()) == module()


class TestBzImage:
    def image(self, payload: bytes, setup_sects: int) -> bytes:
        header = bytearray(((setup_sects or 4) + 1) * 512)
        header[0x1F1] = setup_sects
        struct.pack_into("<II", header, 0x248, 16, len(payload))
        return bytes(header) + bytes(16) + payload + b"behind"

    @pytest.mark.parametrize("setup_sects", [0, 27])
    def test_the_kernel_inside_is_unpacked(self, setup_sects: int) -> None:
        payload = lzma.compress(b"\x7fELF kernel") + struct.pack("<I", 11)
        assert vmlinux(self.image(payload, setup_sects)) == b"\x7fELF kernel"

    def test_another_compression_leaves_the_image_to_unpack_itself(self) -> None:
        assert vmlinux(self.image(b"\x28\xb5\x2f\xfd zstd", 27)) is None


class TestWords:
    def test_the_mark_ends_the_stream_and_tells_the_exit_code(self) -> None:
        words = Words(TOKEN)
        assert words.feed(b"hello" + MARK) == b"hello"
        assert words.exit_code == 3

    def test_it_may_come_byte_by_byte(self) -> None:
        words = Words(TOKEN)
        stream = b"a\n\0\0b\0lab 0123" + MARK
        passed = b"".join(words.feed(bytes([byte])) for byte in stream)
        assert passed == b"a\n\0\0b\0lab 0123"
        assert words.exit_code == 3

    def test_nothing_is_held_back_that_is_no_beginning_of_the_mark(self) -> None:
        words = Words(TOKEN)
        assert words.feed(b"prompt> ") == b"prompt> "
        assert words.feed(b"line\n") == b"line\n"
        assert words.feed(b"\0") == b""
        assert words.feed(b"next") == b"\0next"

    def test_what_comes_behind_the_mark_is_dropped(self) -> None:
        words = Words(TOKEN)
        assert words.feed(MARK + b"a daemon's words") == b""
        assert words.feed(b"more") == b""

    def test_the_rest_of_a_stream_that_broke_off_can_be_had(self) -> None:
        words = Words(TOKEN)
        words.feed(b"line\n" + MARK[:13])
        assert words.rest() == MARK[:13]
        assert words.exit_code is None


class TestConsole:
    def test_it_knows_when_the_lab_is_up(self) -> None:
        console = Console(show=False)
        console.feed(b"kernel\r\n" + UP.encode())
        assert console.up_after_s is None
        console.feed(b"\r\n")
        assert console.up_after_s is not None

    def test_it_keeps_the_last_lines_and_the_unfinished_one(self) -> None:
        console = Console(show=False)
        console.feed(b"".join(b"%d\r\n" % number for number in range(100)) + b"panic")
        lines = console.tail().split()
        assert lines == [str(number) for number in range(100 - KEPT_LINES, 100)] + ["panic"]

    def test_silence_is_said(self) -> None:
        assert "nothing" in Console(show=False).tail()


class TestCommand:
    def test_only_what_a_command_needs_of_the_environment_goes_in(self) -> None:
        host = {
            "PATH": "/bin",
            "HOME": "/root",
            "PYTHONUNBUFFERED": "1",
            "MICROVM_CACHE_DIR": "/c",
            "HYPOTHESIS_PROFILE": "ci",
            "LC_ALL": "C",
            "TMPDIR": "/elsewhere",
            "SSH_AUTH_SOCK": "/s",
            "A_PATH": "/no",
        }
        env = environment(host, None)
        assert set(env) == {*host, "MICROVM_LAB"} - {"SSH_AUTH_SOCK", "A_PATH"}
        assert env["MICROVM_LAB"] == "1"
        assert env["TMPDIR"] == "/run/tmp"

    def test_the_folder_to_write_to_is_named(self) -> None:
        assert environment({}, Path("/results"))["MICROVM_LAB_OUT"] == "/results"

    def test_words_and_variables_survive_the_shell(self) -> None:
        argv = ["sh", "-c", "echo \"$HOME\" 'a b'", "*", "", "line\nline"]
        env = {"X": "it's $1 `here`"}
        script = command_script(argv, env=env, cwd="/a b", out=None, token=TOKEN)
        line = next(part for part in script.split("\n$busybox ") if part.startswith("env -i"))
        ran = shlex.split(line)
        assert ran[: 3 + len(argv)] == ["env", "-i", "X=it's $1 `here`", *argv]
        assert "cd '/a b' ||" in script

    def test_a_folder_is_mounted_only_if_there_is_one(self) -> None:
        plain = command_script(["true"], env={}, cwd="/", out=None, token=TOKEN)
        shared = command_script(["true"], env={}, cwd="/", out=Path("/o u"), token=TOKEN)
        assert "9p" not in plain
        assert "out '/o u'" in shared

    def test_modules_are_numbered_in_their_order(self) -> None:
        archive = initramfs(b"busybox", {"virtio": b"1", "kvm": b"2"}, "true\n")
        assert archive.index(b"modules/00-virtio\0") < archive.index(b"modules/01-kvm\0")


class TestQemuArgv:
    def argv(self, **changes: object) -> list[str]:
        machine = Machine(**{"cpus": 2, "mem_mib": 3072, "out": None, **changes})
        return qemu_argv(
            machine,
            kernel=Path("/k"),
            initrd="/i",
            descriptors={"console": 5, "out": 6, "err": 7},
        )

    def test_the_host_is_shared_read_only(self) -> None:
        argv = self.argv()
        shares = [argv[at + 1] for at, word in enumerate(argv) if word == "-virtfs"]
        assert len(shares) == 1
        assert "path=/," in shares[0]
        assert shares[0].endswith(",readonly=on")

    def test_one_folder_can_be_written_and_its_commas_are_doubled(self) -> None:
        share = self.argv(out=Path("/a,b"))[-1]
        assert "path=/a,,b," in share
        assert "readonly" not in share

    def test_each_stream_goes_to_its_own_pipe(self) -> None:
        argv = self.argv()
        for name, descriptor in (("console", 5), ("out", 6), ("err", 7)):
            assert f"file,id={name},path=/dev/fd/{descriptor}" in argv

    def test_the_kernel_is_quiet_unless_its_console_is_shown(self) -> None:
        quiet, talking = self.argv(), self.argv(talks=True)
        assert "quiet" in quiet[quiet.index("-append") + 1]
        assert "quiet" not in talking[talking.index("-append") + 1]
