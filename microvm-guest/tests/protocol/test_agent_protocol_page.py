"""The protocol's page names every number there is, and no other."""

import re
from pathlib import Path

import pytest

from microvm_guest.protocol.fields import FieldTag
from microvm_guest.protocol.frames import FROM_AGENT, FROM_HOST, ErrorCode, FrameType

PAGE = (Path(__file__).parents[3] / "docs/reference/agent-protocol.md").read_text()


def rows(heading):
    """The first two columns of the table that has this heading."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return {
        name: int(number, 0)
        for name, number in re.findall(r"^\| ([A-Z_0-9]+) \| (\w+) \|", table, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("heading", "numbers"),
    [("type | number", FrameType), ("field | tag", FieldTag), ("code | number", ErrorCode)],
)
def test_the_page_has_every_number(heading, numbers):
    assert rows(heading) == {member.name: int(member) for member in numbers}


def test_the_page_says_who_sends_what():
    table = PAGE.split("| type | number | from", 1)[1].split("\n\n", 1)[0]
    senders = dict(re.findall(r"^\| ([A-Z_]+) \| \w+ \| (\w+) \|", table, re.MULTILINE))
    for kind in FrameType:
        by_host, by_agent = kind in FROM_HOST, kind in FROM_AGENT
        expected = {(True, True): "both", (True, False): "host", (False, True): "agent"}
        assert senders[kind.name] == expected[by_host, by_agent]
