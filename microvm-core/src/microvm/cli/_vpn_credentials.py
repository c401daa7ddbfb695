"""What ``microvm vpn run`` knows of its user: by the configuration, a file, or for the asking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from microvm.console import visible_text
from microvm.errors import ConfigError
from microvm_guest.openvpn import Credentials, read_auth_file

if TYPE_CHECKING:
    from microvm.cli._prompt import Prompt
    from microvm_guest.openvpn import Challenge, OpenVpnConfig

NAME: Final = "User name for the VPN: "
PASSWORD: Final = "Password for the VPN: "  # noqa: S105 - a question
PASSPHRASE: Final = "Passphrase of the private key (nothing if it has none): "  # noqa: S105


def given(config: OpenVpnConfig, auth_file: str | None) -> Credentials:
    """Those in the configuration itself, and over them those in the file.

    Raises:
        VpnConfigError: the file can't be read, or has none in it.
    """
    own = config.credentials or Credentials()
    if auth_file is None:
        return own
    filed = read_auth_file(auth_file)
    if filed.username is not None:
        own = attrs.evolve(own, username=filed.username, password=filed.password)
    return attrs.evolve(own, key_passphrase=filed.key_passphrase or own.key_passphrase)


async def completed(
    known: Credentials, config: OpenVpnConfig, prompt: Prompt | None
) -> Credentials:
    """The same with what lacks, and with somebody who answers the server's questions.

    Args:
        known: What needs no asking.
        config: What will be asked for.
        prompt: Where to ask; None where nobody is there, and then nothing is added.

    Raises:
        ConfigError: there was no answer.
    """
    if prompt is None:
        return known
    if config.wants_password and known.username is None:
        known = attrs.evolve(known, username=await _answer(prompt, NAME, echo=True))
    if config.wants_password and known.password is None:
        known = attrs.evolve(known, password=await _answer(prompt, PASSWORD, echo=False))
    if config.key_may_be_encrypted and known.key_passphrase is None:
        typed = await _answer(prompt, PASSPHRASE, echo=False)
        known = attrs.evolve(known, key_passphrase=typed or None)

    async def answer(challenge: Challenge) -> str:
        text = visible_text(challenge.text.encode("utf-8", "backslashreplace"))
        # An end of input is an empty answer: the server says what it thinks of that.
        return await prompt.ask(f"{text} ", echo=challenge.echo) or ""

    return attrs.evolve(known, answer=answer)


async def _answer(prompt: Prompt, question: str, *, echo: bool) -> str:
    typed = await prompt.ask(question, echo=echo)
    if typed is None:
        raise ConfigError(
            f"{question.partition(' (')[0].rstrip(': ')}: there was no answer.",
            remedy="Type one, or keep it in a file of your own and give --auth-file.",
        )
    return typed
