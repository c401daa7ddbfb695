"""The cache shows only what is whole, to one builder at a time, or says why it can't be used."""

import errno
import os
import threading
from pathlib import Path

import pytest

from microvm_guest.image.cache import (
    explaining,
    link_or_copy,
    open_cache,
    require_space,
)
from microvm_guest.image.errors import CacheError
from microvm_guest.image.layout import CacheLayout


def nobody_waits(text: str) -> None:
    raise AssertionError(text)


def finished(folder: Path, text: str) -> Path:
    done = folder / "done"
    done.mkdir()
    (done / "file").write_text(text)
    return done


def test_a_finished_folder_is_put_in_place_whole_and_read_only(layout: CacheLayout) -> None:
    place = layout.image("one")
    with open_cache(layout, nobody_waits) as cache, cache.work_folder() as work:
        cache.publish(finished(work, "new"), place)
    assert (place / "file").read_text() == "new"
    assert (place / "file").stat().st_mode & 0o777 == 0o444
    assert list(layout.work.iterdir()) == []


def test_what_lay_there_before_is_replaced(layout: CacheLayout) -> None:
    place = layout.image("one")
    with open_cache(layout, nobody_waits) as cache:
        for text in ("old", "new"):
            with cache.work_folder() as work:
                cache.publish(finished(work, text), place)
    assert (place / "file").read_text() == "new"
    assert list(layout.work.iterdir()) == []


def test_a_work_folder_goes_when_the_build_fails(layout: CacheLayout) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_cache(layout, nobody_waits) as cache,
        cache.work_folder() as work,
    ):
        finished(work, "half")
        raise KeyboardInterrupt
    assert list(layout.work.iterdir()) == []
    assert list(layout.images.iterdir()) == []


def test_what_a_dead_builder_left_goes_at_the_next_start(layout: CacheLayout) -> None:
    leftover = layout.work / "build-dead" / "deep"
    leftover.mkdir(parents=True)
    (leftover / "object.o").write_bytes(b"half")
    with open_cache(layout, nobody_waits):
        assert list(layout.work.iterdir()) == []


def test_a_second_builder_waits_and_says_so(layout: CacheLayout) -> None:
    said, in_turn = threading.Event(), []

    def second() -> None:
        with open_cache(layout, lambda _text: said.set()):
            in_turn.append("second")

    with open_cache(layout, nobody_waits):
        thread = threading.Thread(target=second)
        thread.start()
        assert said.wait(60)
        in_turn.append("first")
    thread.join()
    assert in_turn == ["first", "second"]


def test_the_lock_is_not_handed_down_to_programs(layout: CacheLayout) -> None:
    with open_cache(layout, nobody_waits):
        handles = [int(name) for name in os.listdir("/proc/self/fd")]
        locks = [
            handle
            for handle in handles
            if os.path.lexists(f"/proc/self/fd/{handle}")
            and os.readlink(f"/proc/self/fd/{handle}") == str(layout.lock)
        ]
        assert len(locks) == 1
        assert not os.get_inheritable(locks[0])


def test_a_cache_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(CacheError, match=str(root)) as caught,
            open_cache(CacheLayout(root), nobody_waits),
        ):
            pass
        assert "MICROVM_CACHE_DIR" in str(caught.value.remedy)


def test_a_lock_that_is_a_link_is_not_followed(layout: CacheLayout, tmp_path: Path) -> None:
    layout.root.mkdir()
    layout.lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError), open_cache(layout, nobody_waits):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_cache_that_everybody_can_write_is_refused(layout: CacheLayout) -> None:
    layout.root.mkdir()
    layout.root.chmod(0o777)
    with pytest.raises(CacheError, match="Everybody"), open_cache(layout, nobody_waits):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_root_may_use_a_users_cache(layout: CacheLayout, caplog: pytest.LogCaptureFixture) -> None:
    layout.root.mkdir()
    os.chown(layout.root, 12345, 12345)
    with open_cache(layout, nobody_waits):
        pass
    assert "user 12345" in caplog.text


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
        (errno.ENOTDIR, "not a directory"),
        (errno.EIO, "another place"),
    ],
)
def test_each_fault_of_a_disk_has_its_own_remedy(
    layout: CacheLayout, number: int, word: str
) -> None:
    with pytest.raises(CacheError) as caught, explaining(layout):
        raise OSError(number, os.strerror(number))
    assert word in str(caught.value.remedy)
    assert os.strerror(number) in caught.value.message
    assert caught.value.code == "boot.image.cache"


def test_too_little_space_is_told_before_the_work(layout: CacheLayout) -> None:
    layout.root.mkdir()
    require_space(layout, 1)
    with pytest.raises(CacheError, match="MiB free"):
        require_space(layout, 1 << 60)


def test_a_link_is_a_copy_where_there_are_no_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    # The kernel refuses to link across file systems; /dev/shm is one of its own.
    shm = Path("/dev/shm", f"microvm-test-{os.getpid()}")
    try:
        link_or_copy(tmp_path / "a", shm)
        assert shm.read_text() == "text"
    finally:
        shm.unlink(missing_ok=True)
