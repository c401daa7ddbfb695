"""The agent's clock: clock.c between a clock of our own and a script of what the host says."""

import subprocess

import pytest

from microvm_guest.agent import SOURCE_DIR, WARNINGS

DRIVER = r"""
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "clock.h"

#define S 1000000000ull
#define MS 1000000ull

/* A guest without a clock chip, just booted: */
static unsigned long long real = 5 * S, boot = 100 * S;

int fake_gettime(clockid_t id, struct timespec *now)
{
    unsigned long long ns = id == CLOCK_REALTIME ? real : boot;
    *now = (struct timespec){.tv_sec = (time_t)(ns / S), .tv_nsec = (long)(ns % S)};
    return 0;
}

int fake_settime(clockid_t id, const struct timespec *value)
{
    (void)id;
    real = (unsigned long long)value->tv_sec * S + (unsigned long long)value->tv_nsec;
    return 0;
}

int main(int argc, char **argv)
{
    char what[16];
    unsigned long long number;
    clock_own(argc == 1 || strcmp(argv[1], "foreign") != 0);
    while (scanf("%15s %llu", what, &number) == 2) {
        if (strcmp(what, "hint") == 0)
            clock_hint(number * S);
        else if (strcmp(what, "hint-ms") == 0)
            clock_hint(number * MS);
        else if (strcmp(what, "resumed-ms") == 0)
            clock_catch_up(number * MS);
        else if (strcmp(what, "back-ms") == 0)
            clock_step_back(number * MS);
        else if (strcmp(what, "set") == 0)
            clock_set(number * S);
        else if (strcmp(what, "pass") == 0)
            real += number * S, boot += number * S;
        else if (strcmp(what, "user") == 0)
            real = number * S;
    }
    printf("%llu\n", real / (argc > 1 && strcmp(argv[1], "ms") == 0 ? MS : S));
}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """Gives the guest's wall clock, in seconds, after a script."""
    directory = tmp_path_factory.mktemp("clock")
    (directory / "driver.c").write_text(DRIVER)
    program = directory / "driver"
    fakes = ["-Dclock_gettime=fake_gettime", "-Dclock_settime=fake_settime"]
    sources = [str(directory / "driver.c"), str(SOURCE_DIR / "clock.c")]
    include = f"-I{SOURCE_DIR}"
    subprocess.run(["gcc", *WARNINGS, *fakes, include, "-o", program, *sources], check=True)

    def after(script, *arguments):
        done = subprocess.run(
            [program, *arguments], input=script, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    return after


def test_the_first_hint_sets_the_clock(clock):
    assert clock("hint 1000000") == 1_000_000


def test_a_hint_of_no_time_is_none(clock):
    assert clock("hint 0 pass 1") == 6


def test_time_that_passes_on_both_sides_moves_nothing(clock):
    assert clock("hint 1000000 pass 50 hint 1000050 pass 1") == 1_000_051


def test_what_the_guest_has_slept_through_is_made_up_for(clock):
    assert clock("hint 1000000 pass 50 hint 1003650") == 1_003_650
    assert clock("hint 1000000 hint 1003600 pass 10 hint 1007210") == 1_007_210


def test_it_is_made_up_for_once(clock):
    assert clock("hint 1000000 hint 1003600 hint 1003600 pass 5 hint 1003605") == 1_003_605


def test_a_hint_that_was_long_on_its_way_moves_nothing(clock):
    assert clock("hint 1000000 pass 100 hint 1000020") == 1_000_100
    assert clock("hint 1000000 pass 100 hint 1000020 pass 1 hint 1000101") == 1_000_101


def test_a_clock_that_the_guest_has_set_keeps_its_offset(clock):
    assert clock("hint 1000000 user 500 pass 10 hint 1000010") == 510
    assert clock("hint 1000000 user 500 pass 10 hint 1003610") == 4110


def test_time_that_goes_back_without_a_word_of_that_moves_nothing(clock):
    """It may be the word that was on its way for long."""
    assert clock("hint 1000000 pass 10 hint 500000") == 1_000_010
    assert clock("hint 1000000 pass 10 resumed-ms 500000000") == 1_000_010


def test_a_host_whose_clock_was_set_back_takes_the_guest_with_it(clock):
    assert clock("hint 1000000 pass 10 back-ms 996410000 pass 5 hint 996415") == 996_415


def test_it_goes_back_once(clock):
    assert clock("hint 1000000 pass 10 back-ms 996410000 back-ms 996410000") == 996_410


def test_less_than_a_second_back_is_left_to_the_guest(clock):
    assert clock("hint 1000 pass 10 back-ms 1009100", "ms") == 1_010_000


def test_too_far_back_is_made_up_for_by_the_next_word(clock):
    """The word of it was under way for 20 seconds."""
    assert clock("hint 9000 pass 30 back-ms 5010000 resumed-ms 5030000") == 5030
    assert clock("hint 9000 pass 30 back-ms 5010000 pass 2 hint 5032") == 5032


def test_a_clock_that_was_set_on_purpose_keeps_its_offset_on_the_way_back(clock):
    assert clock("hint 9000 user 5000 back-ms 8000000") == 4000


def test_there_is_no_time_before_1970(clock):
    assert clock("hint 9000 user 50 back-ms 8000000") == 0


def test_a_host_that_slept_longer_than_it_was_set_back_is_ahead(clock):
    assert clock("hint 9000 back-ms 9050000") == 9050


def test_set_clock_is_not_undone_by_a_host_that_was_set_back(clock):
    assert clock("hint 1000000 set 7000 back-ms 996400000 pass 3 hint 996403") == 7003


def test_a_guest_that_was_never_told_the_time_is_told_it_by_any_word(clock):
    assert clock("back-ms 1000300", "ms") == 1_000_300
    assert clock("back-ms 0", "ms") == 5000


def test_set_clock_sets_it_and_the_next_hint_does_not_undo_that(clock):
    assert clock("hint 1000000 set 7000 hint 1000000 pass 3 hint 1000003") == 7003
    assert clock("set 7000 pass 1 hint 1000001 pass 1 hint 1000002") == 7002


def test_sleep_is_made_up_for_after_set_clock_too(clock):
    assert clock("hint 1000000 set 1003600 hint 1003600 pass 1 hint 1007201") == 1_007_201


def test_a_clock_that_is_not_the_agents_own_is_left_alone(clock):
    assert clock("hint 1000000 set 7 hint 2000000", "foreign") == 5


def test_less_than_a_second_is_made_up_for_when_the_guest_goes_on_and_only_then(clock):
    assert clock("hint 1000 hint-ms 1000700", "ms") == 1_000_000
    assert clock("hint 1000 resumed-ms 1000700", "ms") == 1_000_700
    assert clock("hint 1000 pass 9 resumed-ms 1009020 resumed-ms 1009020", "ms") == 1_009_020


def test_a_word_that_was_long_on_its_way_moves_nothing_then_either(clock):
    assert clock("hint 1000 pass 10 resumed-ms 1009500", "ms") == 1_010_000


def test_a_clock_that_was_set_on_purpose_keeps_its_offset_then_too(clock):
    assert clock("hint 1000 user 50 resumed-ms 1000300", "ms") == 50_300


def test_a_guest_that_was_never_told_the_time_is_told_it_then(clock):
    assert clock("resumed-ms 1000300", "ms") == 1_000_300
