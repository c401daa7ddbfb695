"""Exception groups of one, opened: what a caller should catch is the error itself."""

from __future__ import annotations

from typing import Any


def only_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error inside nested groups of one; the group itself where there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
