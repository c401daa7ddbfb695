"""The vsock ports of the agent protocol."""

from __future__ import annotations

from typing import Final

GUEST_PORT: Final = 1025
"""The agent listens on it, for hosts that come later."""
HOST_PORT: Final = 1024
"""The agent dials it when it is up."""
FORWARD_PORT: Final = 1026
"""The agent takes forwards on it."""
