"""What is decided from values alone: page runs, figures, options; row 66 of the catalogue."""

import array
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import ConfigError
from microvm_devices.balloon import plugin
from microvm_devices.balloon.pages import read_pfns, runs
from microvm_devices.balloon.statistics import MAX_STATS, NAMES, STAT, parse_statistics


@pytest.mark.parametrize(
    ("pfns", "expected"),
    [
        ([], []),
        ([5], [(5, 1)]),
        ([5, 6, 7], [(5, 3)]),
        ([7, 6, 5], [(5, 3)]),
        ([5, 7, 5, 8], [(5, 1), (7, 2)]),
        ([0xFFFF_FFFF, 0], [(0, 1), (0xFFFF_FFFF, 1)]),
    ],
)
def test_pages_in_a_row_are_one_run(pfns: list[int], expected: list[tuple[int, int]]) -> None:
    assert runs(array.array("I", pfns)) == expected


@given(st.lists(st.integers(0, 300), max_size=300))
def test_runs_hold_exactly_the_pages_that_were_named(pfns: list[int]) -> None:
    found = runs(array.array("I", pfns))
    pages = [first + step for first, count in found for step in range(count)]
    assert pages == sorted(set(pfns))


@pytest.mark.parametrize("tail", [0, 1, 2, 3])
def test_a_page_number_that_is_cut_off_counts_for_nothing(tail: int) -> None:
    assert list(read_pfns(struct.pack("<II", 1, 2) + b"\xff" * tail)) == [1, 2]


def test_figures_have_names_and_the_unknown_is_left_out() -> None:
    data = STAT.pack(4, 1000) + STAT.pack(5, 2000) + STAT.pack(0, 2**64 - 1) + STAT.pack(99, 7)
    assert parse_statistics(data) == {"free_bytes": 1000, "total_bytes": 2000}
    assert parse_statistics(b"") == {}


def test_row_66_as_many_figures_as_there_can_be_are_looked_at() -> None:
    """Row 66: the count is the guest's."""
    data = STAT.pack(4, 1) * MAX_STATS + STAT.pack(5, 2) * 100_000
    assert parse_statistics(data) == {"free_bytes": 1}


@given(st.binary(max_size=400))
def test_row_66_whatever_the_bytes_the_figures_are_named_and_not_negative(data: bytes) -> None:
    """Row 66: tags and values from the guest, cut anywhere."""
    found = parse_statistics(data)
    assert set(found) <= set(NAMES)
    assert all(0 <= value < 2**64 for value in found.values())


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"target": 4}, "target"),
        ({"target_mib": -1}, "target_mib"),
        ({"target_mib": True}, "target_mib"),
        ({"target_mib": 1 << 21}, "target_mib"),
        ({"target_mib": "4"}, "target_mib"),
        ({"deflate_on_oom": 1}, "deflate_on_oom"),
        ({"free_page_reporting": None}, "free_page_reporting"),
        ({"stats_interval_s": 0}, "stats_interval_s"),
        ({"stats_interval_s": float("nan")}, "stats_interval_s"),
        ({"stats_interval_s": float("inf")}, "stats_interval_s"),
        ({"stats_interval_s": "often"}, "stats_interval_s"),
    ],
)
def test_options_that_can_not_be_are_named(options, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create(options)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_the_plugin_offers_the_device_and_is_cheap_to_import() -> None:
    factory = plugin.microvm_register_device()
    assert (factory.name, factory.virtio_id) == ("balloon", 5)
    code = (
        "import sys, microvm_devices.balloon.plugin as p; p.create({});"
        " print('trio' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
