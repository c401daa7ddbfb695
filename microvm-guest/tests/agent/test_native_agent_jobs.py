"""Detached commands in the real agent: their logs, and hosts that come, go and come back."""

import os
import signal
from contextlib import asynccontextmanager

import pytest
import trio

from microvm.errors import ConfigError, GuestError
from microvm_guest.client import open_client
from microvm_guest.protocol.jobs import MAX_JOBS


@pytest.fixture
def path(agent, tmp_path):
    with agent.listening(tmp_path) as path:
        yield path


@asynccontextmanager
async def host(path):
    """A host that connects, and hangs up when the block is left."""
    async with open_client(await trio.open_unix_socket(path)) as client:
        yield client


async def followed(job, **how):
    async with job.follow(**how) as output:
        text = b"".join([chunk async for chunk in output.stream])
        return text, output.skipped


async def test_a_job_outlives_the_host_that_started_it(path, tmp_path):
    os.mkfifo(tmp_path / "go")
    async with host(path) as first:
        job = await first.spawn_detached(
            ["sh", "-c", "echo begun; cat go; echo end >&2; exit 7"], cwd=str(tmp_path)
        )
        async with job.follow() as output:
            assert await output.stream.receive_some() == b"begun\n"
    async with host(path) as second:
        (status,) = await second.jobs()
        assert (status.id, status.running, status.exit_code) == (job.id, True, None)
        assert status.argv == ("sh", "-c", "echo begun; cat go; echo end >&2; exit 7")
        os.kill(status.pid, 0)
        again = await second.job(job.id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.Path(tmp_path / "go").write_text, "gone\n")
            result = await again.wait()
        assert (result.exit_code, result.signal) == (7, None)
        assert await again.logs() == b"begun\ngone\nend\n"
    async with host(path) as third:
        status = await (await third.job(job.id)).status()
        assert (status.running, status.pid, status.exit_code) == (False, None, 7)
        assert (status.log_bytes, status.log_kept, status.age_s > 0) == (15, 15, True)
        assert await followed(await third.job(job.id)) == (b"begun\ngone\nend\n", 0)
        assert (await (await third.job(job.id)).wait()).exit_code == 7


async def test_its_log_keeps_the_last_bytes_and_counts_the_others(path):
    script = "i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done"
    whole = "".join(f"{i}\n" for i in range(5000)).encode()
    async with host(path) as client:
        job = await client.spawn_detached(["sh", "-c", script], log_bytes=1000)
        await job.wait()
        assert await job.logs() == whole[-1000:]
        assert await followed(job) == (whole[-1000:], len(whole) - 1000)
        status = await job.status()
        assert (status.log_bytes, status.log_kept) == (len(whole), 1000)


async def test_nobody_that_reads_slowly_holds_a_job_up(path):
    async with host(path) as client:
        job = await client.spawn_detached(
            ["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo done"]
        )
        async with job.follow() as output:
            assert (await job.wait()).exit_code == 0
            read = b"".join([chunk async for chunk in output.stream])
        assert len(read) + output.skipped == 5_000_005
        assert output.skipped > 0
        assert read.endswith(b"done\n")


async def test_what_is_followed_from_now_has_nothing_of_before(path, tmp_path):
    os.mkfifo(tmp_path / "go")
    async with host(path) as client:
        job = await client.spawn_detached(["sh", "-c", "echo old; cat go"], cwd=str(tmp_path))
        while not await job.logs():
            pass
        async with job.follow(from_start=False) as output:
            await client.ping()
            await trio.Path(tmp_path / "go").write_text("new")
            assert await output.stream.receive_some() == b"new"


async def test_logs_of_a_job_that_runs_are_what_there_is(path):
    async with host(path) as client:
        job = await client.spawn_detached(["sh", "-c", "echo so far; sleep 1000"])
        while await job.logs() != b"so far\n":
            pass
        await job.remove()


async def test_a_signal_is_for_its_process_group_and_is_its_end(path):
    script = "sleep 1000 & echo $!; wait"
    async with host(path) as client:
        job = await client.spawn_detached(["sh", "-c", script])
        async with job.follow() as output:
            child = os.pidfd_open(int(await output.stream.receive_some()))
        await job.send_signal(signal.SIGTERM)
        assert (await job.wait()).signal == signal.SIGTERM
        assert (await job.status()).signal == signal.SIGTERM
        await trio.lowlevel.wait_readable(child)
        os.close(child)
        await job.send_signal(signal.SIGTERM)


async def test_removing_it_kills_its_session_and_ends_who_follows(path):
    script = "set -m; sleep 1000 & echo $!; wait"
    async with host(path) as client, host(path) as other:
        job = await client.spawn_detached(["bash", "-c", script])
        async with (await other.job(job.id)).follow() as output:
            child = os.pidfd_open(int(await output.stream.receive_some()))
            await job.remove()
            assert await output.stream.receive_some() == b""
        await trio.lowlevel.wait_readable(child)
        os.close(child)
        assert await client.jobs() == ()
        for nothing in (job.status, job.logs, job.wait, job.remove):
            with pytest.raises(GuestError, match=r"no (such )?job"):
                await nothing()


async def test_one_that_has_ended_is_removed_too(path):
    async with host(path) as client:
        job = await client.spawn_detached(["echo", "x"])
        await job.wait()
        await job.remove()
        assert await client.jobs() == ()


async def test_a_job_that_can_not_be_started_is_an_error_and_no_job(path):
    async with host(path) as client:
        with pytest.raises(GuestError, match="nope"):
            await client.spawn_detached(["nope"])
        with pytest.raises(GuestError, match="nowhere"):
            await client.spawn_detached(["true"], cwd="/nowhere")
        with pytest.raises(GuestError, match="no user"):
            await client.spawn_detached(["true"], user="nobody-at-all")
        with pytest.raises(ConfigError, match="log"):
            await client.spawn_detached(["true"], log_bytes=0)
        assert await client.jobs() == ()


async def test_one_that_was_cancelled_before_it_had_an_id_is_not_left_running(path):
    async with host(path) as client:
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.spawn_detached(["sleep", "1000"])
            with trio.move_on_after(0):
                await client.spawn_detached(["sleep", "1000"])
        while await client.jobs():
            await client.ping()
        assert (await client.status())["jobs"] == 0


async def test_the_oldest_that_has_ended_gives_way_and_one_that_runs_never(path):
    async with host(path) as client:
        runs = await client.spawn_detached(["sleep", "1000"])
        for _ in range(MAX_JOBS + 3):
            last = await client.spawn_detached(["true"])
            await last.wait()
        ids = [status.id for status in await client.jobs()]
        assert len(ids) == MAX_JOBS
        assert ids[0] == last.id
        assert ids[-1] == runs.id
        for job_id in ids[:-1]:
            await (await client.job(job_id)).remove()
        assert [status.id for status in await client.jobs()] == [runs.id]
        sleepers = [await client.spawn_detached(["sleep", "1000"]) for _ in range(MAX_JOBS - 1)]
        with pytest.raises(GuestError, match="As many jobs run as the agent keeps"):
            await client.spawn_detached(["true"])
        assert (await client.status())["jobs"] == MAX_JOBS
        for job in (runs, *sleepers):
            await job.remove()


async def test_row_89_no_descriptor_of_the_agents_is_open_in_a_job(path):
    async with host(path) as client:
        job = await client.spawn_detached(["sh", "-c", "exec ls -l /proc/self/fd"])
        await job.wait()
        lines = (await job.logs()).decode().splitlines()[1:]
    opened = dict(line.split()[-3::2] for line in lines)
    assert opened.pop("3").startswith("/proc/"), "the directory that is listed"
    assert opened["0"] == "/dev/null"
    assert opened["1"] == opened["2"]
    assert opened["1"].startswith("pipe:")
    assert sorted(opened) == ["0", "1", "2"]


async def test_a_job_ends_with_its_agent(agent):
    async with agent.client() as client:
        job = await client.spawn_detached(["sleep", "1000"])
        child = os.pidfd_open((await job.status()).pid)
    await trio.lowlevel.wait_readable(child)
    os.close(child)


async def test_status_tells_of_load_memory_and_jobs(path):
    async with host(path) as client:
        said = await client.status()
    assert 0 < said["mem_available_kib"] <= said["mem_total_kib"]
    assert all(isinstance(said[name], float) for name in ("load_1", "load_5", "load_15"))
    assert (said["jobs"], said["commands"], said["pauses"]) == (0, 0, 0)


async def test_a_notice_of_a_pause_is_answered_and_counted(path):
    async with host(path) as client, host(path) as other:
        async with trio.open_nursery() as nursery:
            for it in (client, client, other):
                nursery.start_soon(it.prepare_pause)
        assert (await client.status())["pauses"] == 2
        assert await client.catch_up_clock() < 10
