"""Kernel configurations are merged and compared as kconfig itself reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.kernel import fragment_paths
from microvm_guest.kernel.architectures import ARCHITECTURES
from microvm_guest.kernel.kconfig import (
    KconfigSyntaxError,
    Unmet,
    merge,
    parse,
    render,
    unmet,
)
from microvm_guest.kernel.symbols import GONE, adapt

TEXT = """\
# Automatically generated file; DO NOT EDIT.
CONFIG_A=y
# CONFIG_B is not set

# a comment
CONFIG_C="text with = and spaces"
CONFIG_NR=32
"""


def test_settings_are_read_and_comments_are_not() -> None:
    assert parse(TEXT) == {"A": "y", "B": "n", "C": '"text with = and spaces"', "NR": "32"}


def test_the_last_setting_of_a_symbol_counts() -> None:
    assert parse("CONFIG_A=y\n# CONFIG_A is not set\n") == {"A": "n"}


@pytest.mark.parametrize("line", ["A=y", "CONFIG_A", "CONFIG_A=", "CONFIG_A B=y", "CONFIG-A=y"])
def test_a_line_that_is_neither_setting_nor_comment_is_refused(line: str) -> None:
    with pytest.raises(KconfigSyntaxError, match="line 2"):
        parse(f"# ok\n{line}\n")


CONFIGS = st.dictionaries(
    st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True), st.sampled_from(["y", "n", "7", '"s"'])
)


@given(CONFIGS)
def test_what_is_written_is_read_back(config: dict[str, str]) -> None:
    assert parse(render(config)) == config


def test_of_a_choice_the_later_member_is_written_last() -> None:
    # kconfig takes the last member of a choice that is set to y.
    base = parse("CONFIG_KERNEL_GZIP=y\nCONFIG_KERNEL_XZ=y\n")
    merged = merge([base, {"KERNEL_GZIP": "y"}])
    assert list(merged) == ["KERNEL_XZ", "KERNEL_GZIP"]


@given(CONFIGS, CONFIGS)
def test_the_upper_configuration_wins(lower: dict[str, str], upper: dict[str, str]) -> None:
    merged = merge([lower, upper])
    assert merged == {**lower, **upper}
    assert unmet(upper, merged) == []


def test_every_symbol_that_came_out_otherwise_is_told() -> None:
    wanted = {"A": "y", "B": "n", "C": "32", "D": "y"}
    assert unmet(wanted, {"A": "y", "B": "y", "C": "64"}) == [
        Unmet("B", "n", "y"),
        Unmet("C", "32", "64"),
        Unmet("D", "y", "n"),
    ]


def test_not_set_and_absent_are_the_same() -> None:
    assert unmet({"A": "n"}, {}) == []


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_the_fragments_read_and_say_nothing_twice(arch: str) -> None:
    seen: set[str] = set()
    for path in fragment_paths(arch):
        text = path.read_text(encoding="ascii")
        settings = [line for line in text.splitlines() if line.startswith(("CONFIG_", "# CONFIG_"))]
        config = parse(text)
        assert len(config) == len(settings)
        assert not seen & set(config)
        seen |= set(config)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_symbol_in_the_table_of_the_gone_is_one_we_ask_for(arch: str) -> None:
    wanted = merge(parse(path.read_text()) for path in fragment_paths(arch))
    assert set(GONE) <= set(wanted)


def test_a_symbol_is_asked_for_until_the_kernel_that_lost_it() -> None:
    wanted = {"BASE_FULL": "y", "SMP": "y"}
    assert adapt(wanted, (6, 9)) == wanted
    assert adapt(wanted, (6, 10)) == {"SMP": "y"}


def test_versions_compare_as_numbers() -> None:
    assert "RANDOM_TRUST_CPU" in adapt({"RANDOM_TRUST_CPU": "y"}, (6, 1))
    assert "RANDOM_TRUST_CPU" not in adapt({"RANDOM_TRUST_CPU": "y"}, (6, 12))
