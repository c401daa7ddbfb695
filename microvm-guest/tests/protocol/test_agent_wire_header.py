"""The two copies of the protocol's numbers, C and Python, are one."""

import re

import pytest

from microvm_guest import ports
from microvm_guest.agent import HEADERS, SOURCE_DIR, SOURCES
from microvm_guest.protocol import fields, forwards, frames, jobs, records

TEXT = (SOURCE_DIR / "wire.h").read_text()


def c_enum(name):
    body = re.search(rf"enum {name} \{{(.*?)\}};", TEXT, re.DOTALL).group(1)
    return {
        key.split("_", 1)[1]: int(value, 0)
        for key, value in re.findall(r"(\w+) = (0x[0-9a-f]+|\d+)", body)
    }


def c_define(name):
    return int(re.search(rf"#define {name} (\d+)", TEXT).group(1))


@pytest.mark.parametrize(
    ("name", "python"),
    [
        ("frame_type", frames.FrameType),
        ("frame_flag", frames.FrameFlag),
        ("field_tag", fields.FieldTag),
        ("run_flag", fields.RunFlag),
        ("channel", frames.Channel),
        ("error_code", frames.ErrorCode),
        ("notice", frames.Notice),
        ("record_kind", records.RecordKind),
        ("forward_request", forwards.ForwardRequest),
        ("forward_family", forwards.ForwardFamily),
    ],
)
def test_the_enumerations_have_the_same_names_and_numbers(name, python):
    assert c_enum(name) == {key: int(member) for key, member in python.__members__.items()}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("WIRE_MAJOR", frames.MAJOR),
        ("WIRE_MINOR", frames.MINOR),
        ("WIRE_GUEST_PORT", ports.GUEST_PORT),
        ("WIRE_HOST_PORT", ports.HOST_PORT),
        ("WIRE_HEADER_BYTES", frames.HEADER.size),
        ("WIRE_MAX_PAYLOAD", frames.MAX_PAYLOAD),
        ("WIRE_MAX_ERROR_TEXT", frames.MAX_ERROR_TEXT),
        ("WIRE_MAX_WINDOW", frames.MAX_WINDOW),
        ("WIRE_MAGIC_BYTES", len(frames.MAGIC)),
        ("WIRE_MAX_JOBS", jobs.MAX_JOBS),
        ("WIRE_LOG_BYTES", jobs.DEFAULT_LOG_BYTES),
        ("WIRE_MAX_LOG_BYTES", jobs.MAX_LOG_BYTES),
        ("WIRE_JOB_BYTES", jobs.JOB.size),
        ("WIRE_MAX_JOB_TEXT", jobs.MAX_JOB_TEXT),
        ("WIRE_RECORD_BYTES", records.HEADER.size),
        ("WIRE_MAX_RECORD", records.MAX_RECORD),
        ("WIRE_MAX_DEPTH", records.MAX_DEPTH),
        ("WIRE_MAX_NAME", records.MAX_NAME),
        ("WIRE_FORWARD_PORT", ports.FORWARD_PORT),
        ("WIRE_FORWARD_BYTES", forwards.REQUEST.size),
        ("WIRE_FORWARD_REPLY_BYTES", forwards.REPLY.size),
        ("WIRE_MAX_ADDRESS", forwards.MAX_ADDRESS),
        ("WIRE_MAX_FORWARDS", forwards.MAX_FORWARDS),
    ],
)
def test_the_constants_are_the_same(name, number):
    assert c_define(name) == number


def test_the_magic_is_the_same():
    assert f'#define WIRE_MAGIC "{frames.MAGIC.decode()}"' in TEXT


def test_every_source_of_the_agent_is_listed_and_there():
    listed = {*SOURCES, *HEADERS}
    assert listed == {path.name for path in SOURCE_DIR.iterdir() if path.suffix in {".c", ".h"}}
