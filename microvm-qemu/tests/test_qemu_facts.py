"""What a QEMU's facts mean, and how they are stored."""

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_qemu._devices import FRONT_ENDS
from microvm_qemu._facts import QemuFacts, obstacle
from microvm_qemu.plugin import VIRTIO_IDS

GOOD = QemuFacts(
    version=(7, 2, 0),
    has_machine=True,
    has_memfd=True,
    sandbox=True,
    devices=frozenset(FRONT_ENDS.values()),
    accelerators=frozenset({"tcg", "kvm"}),
)


def test_a_good_qemu_has_no_obstacle() -> None:
    assert obstacle(GOOD, "/usr/bin/q", "tcg") is None


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"version": (7, 1, 99)}, "older than 7.2"),
        ({"has_machine": False}, "machine type 'microvm'"),
        ({"has_memfd": False}, "memory-backend-memfd"),
        ({"devices": frozenset({"vhost-user-blk"})}, "vhost-user-vsock-device"),
        ({"accelerators": frozenset({"kvm"})}, "accelerator 'tcg'"),
    ],
)
def test_each_lack_is_a_sentence_with_a_remedy(flaw: dict[str, Any], words: str) -> None:
    found = obstacle(attrs.evolve(GOOD, **flaw), "/usr/bin/q", "tcg")
    assert found is not None
    assert words in found.reason
    assert "/usr/bin/q" in found.reason
    assert "program" in found.remedy


def test_facts_survive_the_cache() -> None:
    assert QemuFacts.from_json(json.loads(json.dumps(GOOD.to_json()))) == GOOD


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(field=st.sampled_from(sorted(GOOD.to_json())), value=JSON)
def test_stored_facts_are_whole_or_refused(field: str, value: object) -> None:
    stored = {**GOOD.to_json(), field: value}
    try:
        facts = QemuFacts.from_json(stored)
    except ValueError:
        return
    assert all(type(part) is int for part in facts.version)
    assert all(isinstance(name, str) for name in facts.devices | facts.accelerators)


@given(JSON)
def test_what_is_not_facts_is_refused(stored: object) -> None:
    with pytest.raises(ValueError):
        QemuFacts.from_json(stored)


def test_the_plugin_offers_exactly_the_devices_that_have_a_front_end() -> None:
    assert frozenset(FRONT_ENDS) == VIRTIO_IDS
