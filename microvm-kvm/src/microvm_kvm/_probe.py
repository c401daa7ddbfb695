"""Whether this KVM runs our machines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from microvm.abc import ProbeReport
from microvm.errors import BackendUnavailable


def probe(options: Mapping[str, Any]) -> ProbeReport:
    """The backend's probe: never raises."""
    from microvm_kvm._abi import KernelCalls
    from microvm_kvm._facts import open_kvm

    try:
        os.close(open_kvm(KernelCalls()))
    except BackendUnavailable as error:
        return ProbeReport(backend="kvm", usable=False, reason=error.message, remedy=error.remedy)
    return ProbeReport(backend="kvm", usable=True, reason="It opens.", accelerated=True)
