"""What is wrong with a configuration: collected, so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import attrs

from microvm.config import ConfigProblem
from microvm.errors import ConfigError, MicrovmError

T = TypeVar("T")


class Problems:
    """Errors of independent steps, kept until all steps have had their turn."""

    def __init__(self) -> None:
        self._found: list[tuple[str, MicrovmError]] = []

    def attempt(self, where: str, step: Callable[[], T]) -> T | None:
        """What the step gives; None where it raised, which is kept."""
        try:
            return step()
        except MicrovmError as error:
            self._found.append((where, _placed(where, error)))
            return None

    def add(self, problems: Iterable[ConfigProblem]) -> None:
        """Keep these."""
        for problem in problems:
            error = ConfigError("The machine can't be built as described:", problems=[problem])
            self._found.append((problem.where, error))

    def told_of(self, where: str) -> bool:
        """Whether there is one of that place already."""
        return any(place == where for place, _ in self._found)

    def raise_any(self) -> None:
        """One error comes out as itself, with its own type; several as one `ConfigError`."""
        if len(self._found) == 1:
            raise self._found[0][1]
        if self._found:
            problems: list[ConfigProblem] = []
            for where, error in self._found:
                if isinstance(error, ConfigError) and error.problems:
                    problems.extend(error.problems)
                else:
                    problems.append(ConfigProblem(where, error.message, error.remedy))
            raise ConfigError("The machine can't be built as described:", problems=problems)


def _placed(where: str, error: MicrovmError) -> MicrovmError:
    """The error, its problems named by their place in the whole configuration."""
    if not isinstance(error, ConfigError) or not error.problems:
        return error
    problems = [
        problem
        if problem.where.startswith(where)
        else attrs.evolve(problem, where=f"{where}.{problem.where}")
        for problem in error.problems
    ]
    return ConfigError(error.message, remedy=error.remedy, problems=problems)
