"""Detached commands in a real guest: hosts come and go, the job stays."""

import json
import signal
from contextlib import asynccontextmanager

import pytest

from microvm import GuestError, Machine
from microvm_guest.client import open_client
from microvm_guest.ports import GUEST_PORT

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]


@asynccontextmanager
async def another_host(machine: Machine):
    """A later connection to the agent, as another program of the host's would make it."""
    async with open_client(await machine.connect(GUEST_PORT)) as client:
        yield client


async def test_a_job_goes_on_whoever_is_connected_and_is_found_again() -> None:
    script = "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo line $i; sleep 0.05; done; exit 3"
    async with Machine() as machine:
        await machine.wait_ready()
        async with another_host(machine) as first:
            job_id = (await first.spawn_detached(["sh", "-c", script])).id
        await machine.run(["true"], check=True)
        async with another_host(machine) as second:
            job = await second.job(job_id)
            before = (await job.status()).log_bytes
            while (await job.status()).log_bytes == before:
                await second.ping()
            await second.run(["touch", "/tmp/stop"], check=True)
            assert (await job.wait()).exit_code == 3
        log = (await (await machine.job(job_id)).logs()).decode().split("\n")
        assert (log[0], log[-1]) == ("line 1", "")
        assert [status.id for status in await machine.jobs()] == [job_id]
        await (await machine.job(job_id)).remove()
        with pytest.raises(GuestError, match="no job"):
            await machine.job(job_id)


async def test_a_log_is_bounded_and_the_guest_keeps_its_memory() -> None:
    async with Machine() as machine:
        guest = await machine.wait_ready()
        job = await machine.spawn_detached(["sh", "-c", "yes | head -c 50000000; echo end"])
        assert (await job.wait()).exit_code == 0
        log = await job.logs()
        assert len(log) == 256 * 1024
        assert log.endswith(b"y\nend\n")
        status = await guest.status()
        assert status["mem_available_kib"] > 30 * 1024


async def test_signals_reach_a_jobs_group_and_its_user_is_who_was_asked_for() -> None:
    async with Machine() as machine:
        job = await machine.spawn_detached(["sh", "-c", "id -u; sleep 1000"], user="1000")
        async with job.follow() as output:
            assert await output.stream.receive_some() == b"1000\n"
            await job.send_signal(signal.SIGTERM)
            assert await output.stream.receive_some() == b""
        assert (await job.wait()).signal == signal.SIGTERM


async def test_status_tells_of_memory_load_and_what_runs() -> None:
    async with Machine() as machine:
        guest = await machine.wait_ready()
        job = await machine.spawn_detached(["sleep", "1000"])
        async with machine.spawn(["sleep", "1000"]):
            said = await guest.status()
        await job.remove()
    assert (said["commands"], said["jobs"], said["pid"]) == (1, 1, 1)
    assert 0 < said["mem_available_kib"] < said["mem_total_kib"] < 128 * 1024
    assert 0 <= said["load_15"] <= said["load_1"] + 1
    assert said["uptime_ms"] >= 0
    json.dumps(dict(said))
