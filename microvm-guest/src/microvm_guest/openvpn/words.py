"""A line of an OpenVPN configuration into words, and back ("Command Parsing"). Pure."""

from __future__ import annotations

from typing import Final

MAX_WORDS: Final = 16
"""OpenVPN's MAX_PARMS."""
SPACE: Final = " \t\v\f\r"
"""C's isspace, without the line's end."""
_QUOTED: Final = frozenset(f"{SPACE}\"'\\#;")


def split(line: str) -> list[str]:
    """The words of a line, without its end: quotes of both kinds, backslashes, comments.

    Raises:
        ValueError: a quote that does not end, a backslash at the end, too many words.
    """
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    characters = iter(line)
    for character in characters:
        if quote == "'":
            if character == "'":
                word, quote = _taken(words, word), ""
            else:
                _add(word, character)
        elif character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise ValueError("a backslash at its end")
            if word is None and escaped in SPACE:
                continue
            if word is None and escaped in "#;":
                break
            word = word if word is not None else []
            word.append(escaped)
        elif quote:
            if character == quote:
                word, quote = _taken(words, word), ""
            else:
                _add(word, character)
        elif character in SPACE:
            word = _taken(words, word)
        elif word is None and character in "#;":
            break
        elif character in "\"'" and word is None:
            word, quote = [], character
        else:
            word = word if word is not None else []
            word.append(character)
    if quote:
        raise ValueError("a quote that does not end")
    _taken(words, word)
    if len(words) > MAX_WORDS:
        raise ValueError(f"more than {MAX_WORDS} words")
    return words


def _taken(words: list[str], word: list[str] | None) -> list[str] | None:
    """No word, when the one that there may be has been taken."""
    if word is not None:
        words.append("".join(word))
    return None


def _add(word: list[str] | None, character: str) -> None:
    assert word is not None
    word.append(character)


def join(words: tuple[str, ...]) -> str:
    """A line that `split`, and OpenVPN, read as these words."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    plain = word and not _QUOTED.intersection(word)
    if plain:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
