"""The agent protocol, host side, without IO: docs/reference/agent-protocol.md is its page."""

from microvm_guest.protocol.commands import RunRequest
from microvm_guest.protocol.connection import AgentConnection, LocalProtocolError
from microvm_guest.protocol.events import NEED_DATA, Event
from microvm_guest.protocol.fields import RunFlag
from microvm_guest.protocol.frames import Channel, ErrorCode, Notice
from microvm_guest.protocol.jobs import AttachRequest, JobRecord

__all__ = [
    "NEED_DATA",
    "AgentConnection",
    "AttachRequest",
    "Channel",
    "ErrorCode",
    "Event",
    "JobRecord",
    "LocalProtocolError",
    "Notice",
    "RunFlag",
    "RunRequest",
]
