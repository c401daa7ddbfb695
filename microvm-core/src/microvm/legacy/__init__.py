"""What a board has and Linux can't do without: a serial port, the clock, ways to end.

A PC's, and the PrimeCells of an Arm board. They are here and not in `microvm_devices` because a
board is not a board without them: it is made with them, by address, and nobody asks for them by
name. What a user adds to a machine is a plugin.

Register files, and nothing else: each is a `microvm.abc.BusDevice`, called by the vCPUs' threads
under the lock of its bus range, and tells the machine what its guest wants through a callable
that was given to it. Such a callable is called on a vCPU's thread with that lock held: it must
not block, nor use the bus, and may be called more than once, since a guest that asks for a reset
goes on running until its vCPUs are stopped, and asks again.
"""
