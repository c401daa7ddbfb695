"""The options of the ``balloon`` device."""

from __future__ import annotations

import attrs

from microvm.config import MAX_MEM_SIZE_MIB, ConfigProblem
from microvm_devices.options import refuse


def is_target(value: object) -> bool:
    """Whether it is a size that a balloon can be asked to have, in MiB."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_MEM_SIZE_MIB


@attrs.frozen(kw_only=True)
class BalloonConfig:
    """What the guest is asked for, and what it may do by itself."""

    target_mib: int = 0
    """How much the guest is to give back, from the start."""
    deflate_on_oom: bool = True
    """The guest may take memory back rather than kill a program."""
    free_page_reporting: bool = True
    """The guest tells of pages that it has no use for as they come to be free, and they go back to
    the host without anybody's asking. It takes them again by touching them."""
    stats_interval_s: float | None = None
    """How often the guest is asked for its figures; None: only when somebody wants them."""

    def __attrs_post_init__(self) -> None:
        problems: list[ConfigProblem] = []
        if not is_target(self.target_mib):
            problems.append(
                ConfigProblem(
                    "target_mib",
                    f"must be a whole number from 0 to {MAX_MEM_SIZE_MIB}, "
                    f"not {self.target_mib!r}.",
                )
            )
        for name in ("deflate_on_oom", "free_page_reporting"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                problems.append(ConfigProblem(name, f"must be True or False, not {value!r}."))
        interval: object = self.stats_interval_s
        if interval is not None:
            number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
            if not number or not 0.1 <= self._seconds() < float("inf"):
                problems.append(
                    ConfigProblem(
                        "stats_interval_s", f"must be 0.1 seconds or more, not {interval!r}."
                    )
                )
        refuse("balloon", problems)

    def _seconds(self) -> float:
        return float(self.stats_interval_s or 0)
