"""Discovery: metadata in, records out, nothing imported."""

import importlib_metadata
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm._discovery import (
    Discovery,
    PluginGroup,
    PluginRecord,
    Switches,
    discover,
    installed_distributions,
)

METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nName: not-a-header\n"


class Installed:
    """A distribution's metadata files."""

    def __init__(self, name: str, entry_points: str | None, version: str = "1.0") -> None:
        self.files = {"METADATA": METADATA.format(name=name, version=version)}
        if entry_points is not None:
            self.files["entry_points.txt"] = entry_points

    def read_text(self, filename: str) -> str | None:
        return self.files.get(filename)


DICE = "[microvm.devices]\ndice = microvm_dice.plugin\n"


def test_a_record_has_group_name_module_distribution_and_version():
    assert discover([Installed("microvm-dice", DICE, "0.3")]) == Discovery(
        records=(
            PluginRecord(
                group=PluginGroup.DEVICE,
                name="dice",
                value="microvm_dice.plugin",
                dist="microvm-dice",
                version="0.3",
            ),
        )
    )


def test_records_are_sorted_by_group_then_name():
    text = """
    # a comment
    [console_scripts]
    microvm.devices = nothing:of_ours

    [microvm.provisioners]
    z = a.z
    [microvm.devices]
    b=m.b
    a = m.a:plugin
    [microvm.backends]
    k = m.k
    [microvm.unknown]
    u = m.u
    """
    found = discover([Installed("x", text)])
    assert [r.key for r in found.records] == ["backend/k", "device/a", "device/b", "provisioner/z"]
    assert found.records[1].value == "m.a:plugin"
    assert found.problems == ()


def test_distributions_that_declare_nothing_of_ours_leave_no_trace():
    others = [Installed("a", None), Installed("b", ""), Installed("c", "[x]\nmicrovm.devices = y")]
    assert discover(others) == Discovery()


def test_a_distribution_found_twice_counts_once_and_the_first_on_the_path_wins():
    found = discover([Installed("My_Dice", DICE, "2"), Installed("my.dice", DICE, "1")])
    assert [record.version for record in found.records] == ["2"]


def test_two_distributions_with_one_name_are_both_recorded():
    found = discover([Installed("b", DICE), Installed("a", DICE)])
    assert [record.dist for record in found.records] == ["a", "b"]


def test_unreadable_metadata_is_told_and_hides_no_other_plugin():
    class Unreadable(Installed):
        def read_text(self, filename: str) -> str | None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

        def __repr__(self) -> str:
            return "unreadable-1.0"

    found = discover([Unreadable("u", None), Installed("microvm-dice", DICE)])
    assert [record.key for record in found.records] == ["device/dice"]
    assert len(found.problems) == 1
    assert "unreadable-1.0" in found.problems[0]
    assert "invalid start byte" in found.problems[0]


@pytest.mark.parametrize("line", ["dice", "= module", "dice =", "="])
def test_a_malformed_entry_point_is_told_with_its_line(line):
    (problem,) = discover([Installed("x", f"[microvm.devices]\n{line}\n")]).problems
    assert repr(line) in problem


@pytest.mark.parametrize(
    "metadata", [None, "", "Name: x\n", "Version: 1\n", "\nName: x\nVersion: 1"]
)
def test_what_a_half_removed_distribution_left_is_told_and_not_used(metadata):
    left = Installed("x", DICE)
    left.files["METADATA"] = metadata
    found = discover([left, Installed("microvm-dice", DICE)])
    assert [record.dist for record in found.records] == ["microvm-dice"]
    assert len(found.problems) == 1
    assert "no Name and Version" in found.problems[0]


def test_older_metadata_in_pkg_info_is_read():
    egg = Installed("x", DICE)
    egg.files["PKG-INFO"] = egg.files.pop("METADATA")
    (record,) = discover([egg]).records
    assert record.dist == "x"


def test_what_is_installed_here_agrees_with_importlib_metadata():
    ours = {
        (r.group.entry_points, r.name, r.value, r.dist, r.version)
        for r in discover(installed_distributions()).records
    }
    theirs = {
        (ep.group, ep.name, ep.value, ep.dist.name, ep.dist.version)
        for group in PluginGroup
        for ep in importlib_metadata.entry_points(group=group.entry_points)
    }
    assert ours == theirs
    assert ours, "the tests run with the distributions installed"


# --- switches --------------------------------------------------------------------------------

DICE_RECORD = PluginRecord(
    group=PluginGroup.DEVICE, name="dice", value="m", dist="Microvm.Dice", version="1"
)


@pytest.mark.parametrize("token", ["device/dice", "dice", "microvm-dice", "microvm_dice"])
def test_a_plugin_is_switched_off_by_key_by_name_or_by_distribution(token):
    switches = Switches.from_environment({"MICROVM_DISABLE_PLUGINS": f" other , {token} ,"})
    assert switches.disables(DICE_RECORD)
    assert switches.unmatched([DICE_RECORD]) == ("other",)


@pytest.mark.parametrize("token", ["backend/dice", "device", "dic", "microvm"])
def test_a_plugin_is_not_switched_off_by_less_than_its_whole_name(token):
    assert not Switches(disabled=frozenset({token})).disables(DICE_RECORD)


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("yes", True), ("", False), ("0", False), ("False", False)]
)
def test_strict_and_trace_are_on_for_anything_but_zero_no_off_false_and_nothing(value, on):
    environment = {"MICROVM_STRICT_PLUGINS": value, "MICROVM_TRACE_HOOKS": value}
    switches = Switches.from_environment(environment)
    assert (switches.strict, switches.trace_hooks) == (on, on)


def test_an_empty_environment_switches_nothing():
    assert Switches.from_environment({}) == Switches()


# --- any metadata ------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_no_metadata_whatever_raises(entry_points, metadata):
    installed = Installed("x", f"[microvm.devices]\n{entry_points}")
    installed.files["METADATA"] = metadata
    found = discover([installed])
    assert isinstance(found, Discovery)


WORD = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
GROUP = st.sampled_from([group.entry_points for group in PluginGroup] + ["console_scripts"])


class Theirs(importlib_metadata.Distribution):
    """The same metadata as importlib_metadata sees it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self, filename):
        return self.text if filename == "entry_points.txt" else None

    def locate_file(self, path):
        raise AssertionError("nothing is asked for but metadata")


@given(st.dictionaries(GROUP, st.dictionaries(WORD, WORD, min_size=1)))
def test_well_formed_metadata_reads_as_importlib_metadata_reads_it(sections):
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in sections.items()
    )
    theirs = {
        (entry.group, entry.name, entry.value)
        for entry in Theirs(text).entry_points
        if entry.group in {group.entry_points for group in PluginGroup}
    }
    ours = {
        (r.group.entry_points, r.name, r.value) for r in discover([Installed("x", text)]).records
    }
    assert ours == theirs
