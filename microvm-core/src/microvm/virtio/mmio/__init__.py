"""virtio over memory-mapped registers (virtio 1.2, 4.2 Virtio Over MMIO).

Who owns what. The registers belong to the bus: the vCPUs' threads, one at a time, under the
range's lock. At DRIVER_OK the queues are made and handed to the device's task on the trio thread,
which has them alone until its run ends. Both sides touch three words only (the interrupt status,
"needs reset" and the configuration's generation), which have a lock of their own, `Signals`,
that nobody holds for longer than it takes to set a bit.

The one rendezvous is a reset: when the driver's write of 0 to Status has returned, the device
must no longer touch the guest's memory (2.4.1, 4.2.3.1), so the vCPU's thread waits for the run
to end. It holds the bus range's lock meanwhile. Hence the rule that keeps this free of deadlock:
*the device's side never takes the bus lock*, neither to interrupt nor to report a fault, and the
trio thread never blocks on a vCPU (`microvm._loop_calls`).

A driver moves through the states of `transport._NEXT`, one bit at a time (3.1.1 Driver
Requirements: Device Initialization). Each register can be written in some of them, see `_WRITERS`
there; what comes out of turn is dropped. What Status reads is the driver's state and, or-ed to it,
NEEDS_RESET.
"""

from microvm.virtio.mmio.transport import VirtioMmioTransport

__all__ = ["VirtioMmioTransport"]
