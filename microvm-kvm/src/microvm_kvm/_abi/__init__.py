"""KVM's binary interface. Nothing outside of this package declares C, and few modules use it."""

from __future__ import annotations

from microvm_kvm._abi._generated import ffi
from microvm_kvm._abi.calls import Calls, KernelCalls, pointer_to

__all__ = ["Calls", "KernelCalls", "ffi", "pointer_to"]
