"""What is read of the host."""

from pathlib import Path

from microvm.memory import host_mem_mib
from microvm_qemu._host import parse_counter_khz

CLOUD = """\
processor	: 0
model name	: Some CPU @ 2.60GHz
cpu MHz		: 2599.998
flags		: fpu vme tsc rdtscp constant_tsc tsc_known_freq hypervisor
"""


def test_a_virtual_hosts_rate_is_the_counters() -> None:
    assert parse_counter_khz(CLOUD) == 2599998


def test_a_cpu_that_measures_itself_does_not_tell_the_counters_rate() -> None:
    assert parse_counter_khz(CLOUD.replace("hypervisor", "hypervisor aperfmperf")) is None


def test_a_real_machine_does_not_tell_it() -> None:
    assert parse_counter_khz(CLOUD.replace(" hypervisor", "")) is None
    assert parse_counter_khz(CLOUD.replace(" tsc_known_freq", "")) is None


def test_another_architectures_file_says_nothing() -> None:
    assert parse_counter_khz("processor : 0\nBogoMIPS : 48.00\nFeatures : fp asimd\n") is None
    assert parse_counter_khz("") is None


def test_the_hosts_memory_is_what_the_kernel_counts() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    total_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert abs(host_mem_mib() - total_kib // 1024) <= 1
