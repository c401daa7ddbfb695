from collections.abc import Iterator

from microvm.timeline import BootTimeline


def ticking(*milliseconds: int) -> Iterator[int]:
    return iter([ms * 1_000_000 for ms in milliseconds])


def test_a_phase_lasts_from_the_end_of_the_one_before() -> None:
    clock = ticking(0, 10, 35)
    timeline = BootTimeline(lambda: next(clock))
    timeline.mark("plugins")
    timeline.mark("spawn")
    assert list(timeline.phases.items()) == [("plugins", 10.0), ("spawn", 25.0)]
    assert timeline.total_ms == 35.0


def test_a_phase_marked_twice_adds_up() -> None:
    clock = ticking(0, 5, 8)
    timeline = BootTimeline(lambda: next(clock))
    timeline.mark("image")
    timeline.mark("image")
    assert timeline.phases == {"image": 8.0}


def test_a_program_that_began_earlier_counts_from_there() -> None:
    timeline = BootTimeline(lambda: 50_000_000, started_ns=20_000_000)
    timeline.mark("python")
    assert timeline.phases == {"python": 30.0}
