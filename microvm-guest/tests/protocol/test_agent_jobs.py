"""What an agent tells of its jobs."""

import contextlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.jobs import job_status
from microvm_guest.protocol.fields import FieldTag, encode_field
from microvm_guest.protocol.frames import ProtocolViolation
from microvm_guest.protocol.jobs import (
    JOB,
    MAX_JOB_TEXT,
    MAX_JOBS,
    MAX_LOG_BYTES,
    JobRecord,
    decode_jobs,
    encode_job,
)

RUNS = JobRecord(
    id=3, pid=70, exit_code=0, signal=0, running=True, log_size=1000, log_begin=500,
    log_end=1500, age_ns=2_500_000_000, argv=("sh", "-c", "two words"),
)  # fmt: skip


def test_all_are_read_as_they_were_written():
    ended = attrs.evolve(RUNS, id=2, pid=0, running=False, exit_code=7)
    assert decode_jobs(encode_job(RUNS) + encode_job(ended)) == (RUNS, ended)
    assert decode_jobs(b"") == ()


def test_their_user_sees_what_it_means():
    status = job_status(RUNS)
    assert (status.running, status.pid, status.exit_code, status.signal) == (True, 70, None, None)
    assert (status.age_s, status.log_bytes, status.log_kept) == (2.5, 1500, 1000)
    ended = job_status(attrs.evolve(RUNS, running=False, exit_code=7))
    assert (ended.pid, ended.exit_code, ended.signal) == (None, 7, None)
    killed = job_status(attrs.evolve(RUNS, running=False, signal=9))
    assert (killed.pid, killed.exit_code, killed.signal) == (None, None, 9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0},
        {"exit_code": 256},
        {"signal": 65},
        {"exit_code": 1, "signal": 9},
        {"running": 2},
        {"log_begin": 1501},
        {"log_begin": 0, "log_end": MAX_LOG_BYTES + 1},
    ],
)
def test_numbers_that_can_not_be_are_refused(wrong):
    with pytest.raises(ProtocolViolation):
        decode_jobs(encode_job(attrs.evolve(RUNS, **wrong)))


@pytest.mark.parametrize(
    "payload",
    [
        encode_job(RUNS) * 2,
        b"".join(encode_job(attrs.evolve(RUNS, id=n + 1)) for n in range(MAX_JOBS + 1)),
        encode_field(FieldTag.JOB, bytes(JOB.size - 1)),
        encode_field(FieldTag.JOB, bytes(JOB.size + MAX_JOB_TEXT + 1)),
        encode_job(RUNS)[:-1],
    ],
    ids=["one-id-twice", "too-many", "cut-short", "too-long", "cut-field"],
)
def test_lists_that_can_not_be_are_refused(payload):
    with pytest.raises(ProtocolViolation):
        decode_jobs(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_jobs_or_a_violation(raw):
    for payload in (raw, encode_field(FieldTag.JOB, raw), encode_job(RUNS) + raw):
        with contextlib.suppress(ProtocolViolation):
            decode_jobs(payload)
