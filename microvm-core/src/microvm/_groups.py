"""Exception groups of one, opened: what a caller should catch is the error itself."""

from __future__ import annotations


def only_error(error: BaseException) -> BaseException:
    """The one error inside nested groups of one; a group of several, or no group, as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
