"""What a worker tells: the same on both sides, and nothing believed on the way back."""

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.config import ConfigProblem
from microvm.errors import (
    BackendCrashed,
    ConfigError,
    HypervisorCallError,
    ImageError,
    MicrovmError,
    WorkerProtocolError,
)
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.worker import values
from microvm.worker.frames import MAX_FRAME_BYTES, encode
from microvm.worker.values import (
    ERRORS,
    Snapshot,
    error_from_json,
    error_to_json,
    facts_from_json,
    facts_to_json,
    marks_from_json,
    outcome_from_json,
    outcome_to_json,
    snapshot_from_json,
    snapshot_to_json,
)


def carried(error: BaseException) -> MicrovmError:
    return error_from_json(json.loads(json.dumps(error_to_json(error))))


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_every_error_of_ours_arrives_as_itself(kind):
    if kind is HypervisorCallError:
        error = kind("KVM_RUN", 14, remedy="Wait.")
    else:
        error = kind("It broke.\nTwice.", remedy="Repair it.")
        error.console = ("line 1", "line 2")
    arrived = carried(error)
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert (arrived.remedy, arrived.console) == (error.remedy, error.console)


def test_the_problems_of_a_configuration_arrive():
    problems = (ConfigProblem("boot.kernel", "is a directory.", "Give a file."),)
    assert carried(ConfigError("No:", problems=problems)).problems == problems


def test_a_plugins_own_error_arrives_as_the_nearest_of_ours():
    class Rotten(ImageError):
        code = "boot.image.rotten"

    assert type(carried(Rotten("It smells."))) is ImageError


def test_what_is_no_error_of_ours_is_a_crash_with_its_name():
    arrived = carried(ZeroDivisionError("division by zero"))
    assert type(arrived) is BackendCrashed
    assert "ZeroDivisionError: division by zero" in arrived.message


def test_outcomes_and_snapshots_arrive():
    for reason in OutcomeReason:
        outcome = MachineOutcome(
            reason=reason, detail="So.", console_tail=("a", "b"), cpu_state=("rip=0",)
        )
        assert outcome_from_json(outcome_to_json(outcome)) == outcome
    snapshot = Snapshot(
        console_tail=("a",),
        exit_counts={"pio 0x3f8": 12},
        console_counters={"printed_bytes": 3},
        device_counters={"blk0": {"requests": 1 << 40}, "net0": {}},
    )
    assert snapshot_from_json(snapshot_to_json(snapshot)) == snapshot


def test_the_largest_of_everything_fits_a_frame():
    astral = "\N{GRINNING FACE}" * 10_000
    lines = [astral] * 1000
    error = ConfigError(astral, remedy=astral, problems=[ConfigProblem(*[astral] * 3)] * 100)
    error.console = tuple(lines)
    outcome = MachineOutcome(
        reason=OutcomeReason.CRASHED, detail=astral, console_tail=lines, cpu_state=lines
    )
    snapshot = Snapshot(
        console_tail=lines,
        exit_counts={f"{n}{astral}": 1 << 62 for n in range(5000)},
        console_counters={f"{n}{astral}": 1 << 62 for n in range(5000)},
        device_counters={
            f"{n}{astral}": {f"{n}{astral[:99]}": 1 << 200 for n in range(500)} for n in range(500)
        },
    )
    frames = [
        encode({"id": 1, "error": error_to_json(error)}),
        encode({"outcome": outcome_to_json(outcome), "snapshot": snapshot_to_json(snapshot)}),
        encode({"id": 1, "ok": facts_to_json({f"{n}{astral}": astral for n in range(500)})}),
    ]
    assert max(map(len, frames)) < MAX_FRAME_BYTES


def test_what_a_device_answers_arrives():
    facts = {"mib": 7, "ratio": 0.5, "on": True, "why": None, "name": "dice"}
    assert facts_from_json(facts_to_json(facts)) == facts
    assert facts_from_json({"name": "\x1b[31m"}) == {"name": "\\x1b[31m"}
    with pytest.raises(TypeError, match="not list"):
        facts_to_json({"names": ["a"]})
    with pytest.raises(WorkerProtocolError):
        facts_from_json({"names": ["a"]})


def test_control_characters_are_made_visible():
    message = error_to_json(MicrovmError("\x1b]0;owned\x07", remedy="a\x08b"))
    assert str(error_from_json(message)) == "\\x1b]0;owned\\x07\na\\x08b"


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"code": "no.such"},
        {"code": ["boot"]},
        {"code": "boot"},
        {"code": "boot", "message": 1},
        {"code": "boot", "message": "m", "remedy": 1},
        {"code": "boot", "message": "m", "console": "lines"},
        {"code": "boot", "message": "m", "console": [1]},
        {"code": "config", "message": "m", "console": []},
        {"code": "config", "message": "m", "console": [], "problems": [["a"]]},
        {"code": "backend.hypervisor_call", "message": "m", "call": "c", "errno": "e"},
    ],
)
def test_an_error_that_is_none_is_a_typed_error(message):
    with pytest.raises(WorkerProtocolError):
        error_from_json(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *("code", "message", "remedy", "console", "problems", "call", "errno"),
        *("reason", "detail", "console_tail", "cpu_state", "exit_counts"),
        *("console_counters", "device_counters"),
    ]
)
NEARLY = st.dictionaries(KEYS, JSON | st.sampled_from([*ERRORS, *OutcomeReason]))


@given(JSON | NEARLY)
def test_anything_gives_a_value_or_a_typed_error(message):
    readers = (error_from_json, outcome_from_json, snapshot_from_json, marks_from_json)
    for read in (*readers, facts_from_json):
        try:
            read(message)
        except WorkerProtocolError:
            continue


def test_every_bound_is_named():
    assert set(attrs.asdict(Snapshot())) == {
        *("console_tail", "exit_counts", "console_counters", "device_counters")
    }
    assert values.MAX_LINES * values.MAX_LINE * 12 < MAX_FRAME_BYTES
