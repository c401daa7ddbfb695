"""Jobs: how one is attached to, and what the agent says of those it keeps. Pure.

docs/reference/agent-protocol.md, "Jobs".
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from microvm_guest.protocol.fields import FieldTag, RunFlag, decode_fields, encode_field
from microvm_guest.protocol.frames import MAX_SIGNAL, ProtocolViolation

JOB: Final = struct.Struct("<IIIIIIQQQ")
"""Id, process id, exit code, signal, whether it runs, the log's size, the positions at which the
log begins and ends, nanoseconds since the start; the argument vector follows, with a NUL behind
each word."""
MAX_JOBS: Final = 32
"""How many the agent keeps, those that have ended too."""
DEFAULT_LOG_BYTES: Final = 256 * 1024
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
MAX_JOB_TEXT: Final = 512
LOG_END: Final = 2**64 - 1
"""As the position to attach from: nothing of what there is, all that comes."""
_MAX_EXIT_CODE = 255


@attrs.frozen(kw_only=True)
class AttachRequest:
    """A job to attach to. For the rest of the client it is a command with one output."""

    job: int
    window: int = 512 * 1024
    log_from: int = 0
    """The first byte wanted, counted from the first that the job has printed."""

    forget: bool = False
    """Kill it, and keep nothing of it; EXIT comes when that is done."""

    tty: None = None
    flags: RunFlag = RunFlag.MERGE | RunFlag.NO_STDIN

    @property
    def argv(self) -> tuple[str, ...]:
        """What it is called in messages."""
        return (f"job {self.job}",)

    def encode(self) -> bytes:
        """The ATTACH's payload."""
        return (
            encode_field(FieldTag.JOB, self.job.to_bytes(4, "little"))
            + encode_field(FieldTag.WINDOW, self.window)
            + encode_field(FieldTag.LOG_FROM, self.log_from)
        )


@attrs.frozen(kw_only=True)
class JobRecord:
    """One job, as the agent tells of it."""

    id: int
    pid: int
    exit_code: int
    signal: int
    running: bool
    log_size: int
    log_begin: int
    log_end: int
    age_ns: int
    argv: tuple[str, ...]


def encode_job(job: JobRecord) -> bytes:
    """As the agent does it."""
    fixed = JOB.pack(
        job.id, job.pid, job.exit_code, job.signal, job.running, job.log_size,
        job.log_begin, job.log_end, job.age_ns,
    )  # fmt: skip
    words = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in job.argv)
    return encode_field(FieldTag.JOB, fixed + words)


def decode_jobs(payload: bytes) -> tuple[JobRecord, ...]:
    """All jobs of a JOBS frame.

    Raises:
        ProtocolViolation: no agent says that.
    """
    jobs = tuple(_decode(raw) for tag, raw in decode_fields(payload) if tag is FieldTag.JOB)
    if len(jobs) > MAX_JOBS or len({job.id for job in jobs}) < len(jobs):
        raise ProtocolViolation("a JOBS frame with more jobs than there can be")
    return jobs


def _decode(raw: bytes) -> JobRecord:
    if not JOB.size <= len(raw) <= JOB.size + MAX_JOB_TEXT:
        raise ProtocolViolation(f"a JOB field of {len(raw)} bytes")
    number, pid, code, signal, running, size, begin, end, age = JOB.unpack_from(raw)
    wrong_end = code > _MAX_EXIT_CODE or signal > MAX_SIGNAL or (code and signal)
    if not number or running > 1 or wrong_end or not begin <= end <= begin + MAX_LOG_BYTES:
        raise ProtocolViolation("a JOB field with numbers that can't be")
    words = raw[JOB.size :].split(b"\0")[:-1]
    return JobRecord(
        id=number,
        pid=pid,
        exit_code=code,
        signal=signal,
        running=bool(running),
        log_size=size,
        log_begin=begin,
        log_end=end,
        age_ns=age,
        argv=tuple(word.decode("utf-8", "surrogateescape") for word in words),
    )
