"""When a write may be reported as done (virtio 1.2, 5.2.5.2, 5.2.6.2). Pure.

A write is *volatile* when it is submitted. It is *stable*, that is, it outlives the host's power
cut, once it is complete and a FLUSH sent after that is complete. And it must be stable before its
completion is reported, without any flush, in these cases:

    CONFIG_WCE   FLUSH     the field `writeback`    writes are
    ----------   -------   ---------------------    -------------------------------
    accepted     any       0                        stable when complete
    accepted     any       1                        volatile until a flush
    refused      accepted  no meaning               volatile until a flush
    refused      refused   no meaning               stable when complete

The last line is the one that is forgotten: a driver that has not accepted FLUSH can't flush, so it
must not have to. A drive with ``writeback=False`` doesn't offer CONFIG_WCE, and all its writes are
stable when complete.

The field and time. The standard binds us only if the field was 0 from submission to completion, so
one look between the two is enough: after the request was popped, before it is used. A driver reads
the field after it has negotiated and before the device runs; what it reads then must hold. So the
field begins anew when a run has ended, not when the next begins: between two runs it belongs to the
next driver, if there is one, and otherwise, after a pause, nobody looks. Where CONFIG_WCE is
accepted and FLUSH is not, the field must begin at 0 (5.2.5.2), and what was read is not our word:
writes are stable until the driver has written a 1 while the device ran.
"""

from __future__ import annotations

from microvm_devices.blk.layout import F_CONFIG_WCE, F_FLUSH


class WriteMode:
    """The field `writeback`, and what follows from it. From any thread: one int at a time.

    Args:
        configured: Whether the drive's user lets writes wait for a flush.
    """

    def __init__(self, *, configured: bool) -> None:
        self._configured = configured
        self._features: int | None = None
        self._paused: int | None = None
        self.writeback = int(configured)
        """The field, as the driver reads it."""

    def begin(self, features: int) -> None:
        """A run begins, with what was negotiated."""
        if self._paused is not None:
            self.writeback = self._paused
        elif features & F_CONFIG_WCE and not features & F_FLUSH:
            self.writeback = 0
        self._paused = None
        self._features = features

    def end(self) -> None:
        """The run is over."""
        self._paused = self.writeback
        self._features = None
        self.writeback = int(self._configured)

    def reset(self) -> None:
        """The driver begins anew: what it had set before the end of the run is forgotten."""
        self._paused = None

    def write(self, value: int) -> None:
        """The driver writes the field. Without CONFIG_WCE it can't."""
        features = self._features
        if self._configured and (features is None or features & F_CONFIG_WCE):
            self.writeback = int(bool(value))

    @property
    def through(self) -> bool:
        """Whether a write must be stable before it is reported. Look after it was popped."""
        features = self._features or 0
        if not self._configured:
            return True
        if features & F_CONFIG_WCE:
            return not self.writeback
        return not features & F_FLUSH
