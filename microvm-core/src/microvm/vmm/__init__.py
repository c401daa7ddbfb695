"""The virtual machine monitor: a machine out of a hypervisor's vCPUs, our boot and our devices.

`platform.HypervisorPlatform` makes a `Hypervisor` look like any other platform. An `Engine` is
one machine below that: memory, buses, devices, one thread a vCPU; it is built and runs without
trio, so that a program may boot its guest while trio is imported. `VmmMachine` is its trio side.
"""
