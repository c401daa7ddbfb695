"""Whom ``microvm vpn run`` takes its user for, and what it asks at a terminal."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from microvm import ConfigError
from microvm.cli._prompt import Prompt
from microvm.cli._status_line import StatusLine
from microvm.cli._vpn_credentials import completed, given
from microvm_guest.openvpn import Challenge, Credentials, OpenVpnConfig
from microvm_guest.openvpn.config import parse_config

CA = "client\nremote a\n<ca>\n</ca>\n"
LOGIN = CA + "auth-user-pass\n"
INLINE = CA + "<auth-user-pass>\nme\nsecret\n</auth-user-pass>\n"
KEY = (
    "<key>\n-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----\n"
    "</key>\n"
)
OLD_KEY = "<key>\n-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMII=\n</key>\n"
OPEN_KEY = "<key>\n-----BEGIN PRIVATE KEY-----\nMII=\n-----END PRIVATE KEY-----\n</key>\n"


def config(text: str) -> OpenVpnConfig:
    def read(name: str) -> bytes:
        return b"\x30\x82"

    return parse_config(text, read)


class Person:
    """Answers questions at a terminal, in order, as they come up."""

    def __init__(self) -> None:
        self._fd, self.ours = os.openpty()
        self.prompt = Prompt(self.ours, self.ours, StatusLine(None))

    def close(self) -> None:
        os.close(self._fd)
        os.close(self.ours)

    async def sees(self, question: str) -> None:
        seen = ""
        with trio.fail_after(30):
            while question not in seen:
                await trio.lowlevel.wait_readable(self._fd)
                seen += os.read(self._fd, 4096).decode()

    async def answers(self, *pairs: tuple[str, str]) -> None:
        for question, answer in pairs:
            await self.sees(question)
            os.write(self._fd, f"{answer}\r".encode())


@pytest.fixture
def person() -> Iterator[Person]:
    person = Person()
    yield person
    person.close()


async def known_by(text: str, person: Person, *pairs: tuple[str, str]) -> Credentials:
    """What is known in the end, of a user who answers so."""
    parsed = config(text)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person.answers, *pairs)
        return await completed(given(parsed, None), parsed, person.prompt)


@pytest.mark.parametrize(
    ("text", "pairs", "name", "password", "passphrase"),
    [
        (LOGIN, [("User name", "me"), ("Password", "secret")], "me", "secret", None),
        (INLINE, [], "me", "secret", None),
        (INLINE + OPEN_KEY, [], "me", "secret", None),
        (INLINE + KEY, [("Passphrase", "sesame")], "me", "secret", "sesame"),
        (CA + OLD_KEY, [("Passphrase", "sesame")], None, None, "sesame"),
        (CA + "pkcs12 me.p12\n", [("Passphrase", "")], None, None, None),
        (CA + OPEN_KEY, [], None, None, None),
    ],
)
async def test_what_lacks_is_asked_for_and_nothing_else(
    person: Person,
    text: str,
    pairs: list[tuple[str, str]],
    name: str | None,
    password: str | None,
    passphrase: str | None,
) -> None:
    known = await known_by(text, person, *pairs)
    assert (known.username, known.password, known.key_passphrase) == (name, password, passphrase)


@pytest.mark.parametrize("text", [INLINE, CA + OPEN_KEY])
async def test_the_servers_question_is_put_to_the_person_whatever_else_was_known(
    person: Person, text: str
) -> None:
    known = await known_by(text, person)
    assert known.answer is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person.answers, (r"Your \x1b[31mcode?", "123456"))
        question = Challenge(text="Your \x1b[31mcode?", echo=True)
        assert await known.answer(question) == "123456"


async def test_a_server_that_asks_again_gets_the_second_answer(person: Person) -> None:
    """As the tunnel does it: the question before is called off."""
    known = await known_by(INLINE, person)
    assert known.answer is not None
    got = []

    async def ask(text: str, scope: trio.CancelScope) -> None:
        assert known.answer is not None
        with scope:
            got.append(await known.answer(Challenge(text=text, echo=False)))

    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()
        nursery.start_soon(ask, "First?", first)
        await person.sees("First?")
        first.cancel()
        nursery.start_soon(ask, "Second?", trio.CancelScope())
        await person.answers(("Second?", "222"))
    assert got == ["222"]


async def test_where_nobody_sits_nobody_is_asked() -> None:
    parsed = config(LOGIN + KEY)
    assert await completed(given(parsed, None), parsed, None) == Credentials()


async def test_no_answer_is_an_error_that_names_the_question(person: Person) -> None:
    parsed = config(LOGIN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person.answers, ("User name", "\x04"))
        with pytest.raises(ConfigError, match="User name for the VPN: there was no answer"):
            await completed(given(parsed, None), parsed, person.prompt)


@pytest.mark.parametrize(
    ("lines", "name", "password", "passphrase"),
    [
        ("you\nhush\n", "you", "hush", None),
        ("you\nhush\nsesame\n", "you", "hush", "sesame"),
        ("\n\nsesame\n", "me", "secret", "sesame"),
    ],
)
def test_a_file_comes_before_the_configuration_in_what_it_has(
    tmp_path: Path, lines: str, name: str, password: str, passphrase: str | None
) -> None:
    file = tmp_path / "auth"
    file.write_text(lines)
    known = given(config(INLINE), str(file))
    assert known == Credentials(name, password, key_passphrase=passphrase)
