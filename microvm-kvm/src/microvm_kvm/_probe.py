"""Whether this KVM runs our machines. Blocking: some 15 ms the first time, and 0.1 after."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from microvm.abc import ProbeReport
from microvm.errors import BackendUnavailable, MicrovmError

if TYPE_CHECKING:
    from microvm.abc import Hypervisor
    from microvm_kvm._abi import Calls
    from microvm_kvm._trial import TrialResult

BACKEND: Final = "kvm"
DEVICE: Final = "/dev/kvm"

NEEDS_HARDWARE: Final = (
    "Use a host with virtualization (vmx or svm in /proc/cpuinfo, and kvm_intel or kvm_amd "
    "loaded), or install microvm-qemu, which runs machines in software."
)


def probe(options: Mapping[str, Any]) -> ProbeReport:
    """The backend's probe: never raises.

    Options that are wrong are left to `create`, which lists them.
    """
    small_guests = options.get("small_guests") is True
    return examine(sys.platform, platform.machine(), small_guests=small_guests)


def examine(
    system: str,
    machine: str,
    *,
    small_guests: bool = False,
    device: str = DEVICE,
    calls: Calls | None = None,
    hypervisor: Hypervisor | None = None,
) -> ProbeReport:
    """The same, of any host.

    Args:
        system: As `sys.platform`.
        machine: As `platform.machine()`.
        small_guests: Whether a KVM that runs nothing else will do.
        device: Where its KVM is.
        calls: Its kernel; None is ours.
        hypervisor: What to try guests on; None is KVM itself. What guests did on our own is
            remembered.
    """
    if system != "linux" or machine not in ("x86_64", "AMD64"):
        return _unusable(
            f"The kvm backend runs on Linux on x86_64; this is {system} on {machine}.",
            "Use the backend that is made for this system.",
        )
    # Not imported elsewhere: it opens the C library, and asks it for ioctl.
    from microvm_kvm._abi import KernelCalls
    from microvm_kvm._abi.constants import KVM_API_VERSION
    from microvm_kvm._facts import open_kvm

    try:
        os.close(open_kvm(calls or KernelCalls(), device))
        if hypervisor is None and calls is None:
            result, took_ms = TRIALS.of(device)
        else:
            result, took_ms = _try(device, calls, hypervisor)
    except BackendUnavailable as error:
        return _unusable(error.message, error.remedy)
    except MicrovmError as error:
        return _unusable(f"{device} opens, but makes no machine: {error.message}", error.remedy)
    except (OSError, RuntimeError) as error:  # no descriptor or thread left
        return _unusable(f"{device} could not be tried: {error}.", "Raise this process's limits.")
    details = {
        "device": device,
        "api version": str(KVM_API_VERSION),
        **{name: said or "runs" for name, said in result.pieces.items()},
    }
    if result.mips is not None:
        details["16-bit guest"] = f"runs, {_speed(result.mips)}"
    elif result.small is not None:
        details["16-bit guest"] = result.small
    details["trying took"] = f"{took_ms:.1f} ms"
    return _report(device, result, details, small_guests=small_guests)


def _report(
    device: str, result: TrialResult, details: Mapping[str, str], *, small_guests: bool
) -> ProbeReport:
    if result.runs_kernels:
        return ProbeReport(
            backend=BACKEND,
            usable=True,
            reason=f"{device} runs 64-bit guests.",
            accelerated=True,
            details=details,
        )
    failed = ", ".join(name for name, said in result.pieces.items() if said)
    if result.mips is not None:
        reason = (
            f"{device} runs small guests only: it emulates them, at {_speed(result.mips)}, "
            f"and can't do what a kernel needs ({failed})."
        )
        if small_guests:
            return ProbeReport(backend=BACKEND, usable=True, reason=reason, details=details)
    else:
        reason = f"{device} opens, but runs no guest ({failed}; in 16-bit mode: {result.small})."
    return _unusable(reason, NEEDS_HARDWARE, details)


def _speed(mips: float) -> str:
    return f"about {mips:.1f} MIPS" if mips < 100 else "full speed"


def _try(
    device: str, calls: Calls | None, hypervisor: Hypervisor | None
) -> tuple[TrialResult, float]:
    """What guests do here, and how many milliseconds it took to find out."""
    from microvm_kvm._kvm import KvmHypervisor
    from microvm_kvm._trial import try_guests

    start = time.perf_counter()
    result = try_guests(hypervisor or KvmHypervisor(calls, device))
    return result, (time.perf_counter() - start) * 1000


class Trials:
    """What guests did on each device, tried once: what the host's CPU can do does not change.

    A failure to try may, and a guest that ran out of time had a busy host: these are not kept.

    Args:
        try_on: Tries guests on a device, as `_try`.
    """

    def __init__(self, try_on: Callable[[str], tuple[TrialResult, float]]) -> None:
        self._try_on = try_on
        self._kept: dict[str, tuple[TrialResult, float]] = {}

    def of(self, device: str) -> tuple[TrialResult, float]:
        """What they did, and how many milliseconds it took to find out."""
        found = self._kept.get(device)
        if found is None:
            found = self._try_on(device)
            if not found[0].out_of_time:
                self._kept[device] = found
        return found


TRIALS: Final = Trials(lambda device: _try(device, None, None))


def _unusable(
    reason: str, remedy: str | None, details: Mapping[str, str] | None = None
) -> ProbeReport:
    return ProbeReport(
        backend=BACKEND, usable=False, reason=reason, remedy=remedy, details=details or {}
    )
