"""The thread of a queue: jobs in order, ends only between them."""

import os
import threading

import pytest
import trio
import trio.testing

from microvm.errors import BackendError
from microvm.testing.census import Census
from microvm_devices.blk.worker import Worker


def nothing() -> None:
    pass


async def test_a_job_runs_in_one_other_thread() -> None:
    worker, seen = Worker(), set()
    for _ in range(3):
        await worker.run(lambda: seen.add(threading.current_thread()), when_cancelled=nothing)
    worker.close()
    assert len(seen) == 1
    assert threading.current_thread() not in seen
    assert not next(iter(seen)).is_alive()


async def test_no_job_no_thread() -> None:
    before = Census.take()
    worker = Worker()
    assert Census.take() == before
    worker.close()


@pytest.mark.parametrize("short_of", ["files", "threads"])
async def test_row_98_a_host_without_a_thread_is_told_of_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, short_of: str
) -> None:
    """Row 98."""

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files") if short_of == "files" else RuntimeError("can't")

    before = Census.take()
    worker = Worker()
    with monkeypatch.context() as host:
        owner = os if short_of == "files" else threading.Thread
        host.setattr(owner, "pipe" if short_of == "files" else "start", refuse)
        with pytest.raises(BackendError, match="no thread for a disk"):
            await worker.run(nothing, when_cancelled=nothing)
    worker.close()
    assert Census.take() == before
    await worker.run(nothing, when_cancelled=nothing)
    worker.close()


async def test_an_error_of_the_job_is_raised_where_it_was_ordered_and_the_next_one_runs() -> None:
    worker = Worker()

    def fail() -> None:
        raise KeyError("a bug")

    for _ in range(2):
        with pytest.raises(KeyError, match="a bug"):
            await worker.run(fail, when_cancelled=nothing)
    await worker.run(nothing, when_cancelled=nothing)
    worker.close()


async def test_cancelling_asks_the_job_to_end_and_waits_for_it() -> None:
    worker, asked = Worker(), threading.Event()
    order: list[str] = []

    def job() -> None:
        asked.wait()
        order.append("job")

    def ask() -> None:
        order.append("asked")
        asked.set()

    with trio.CancelScope() as scope:
        scope.cancel()
        await worker.run(job, when_cancelled=ask)
    assert scope.cancelled_caught
    assert order == ["asked", "job"]
    worker.close()
