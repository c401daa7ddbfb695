"""Forwards: a host's address that leads into the guest, and a guest's that leads out of it."""

from microvm.forwards.addresses import (
    Address,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_forward,
)

__all__ = ["Address", "TcpAddress", "UnixAddress", "VsockAddress", "parse_forward"]
