"""The client's half of a SOCKS5 negotiation, without IO.

    METHOD --no authentication--> REPLY --> OVER
    METHOD --password--> AUTHENTICATION --accepted--> REPLY

Send `outgoing` at once and after each `feed`, until `answer` is there. Bytes that came behind the
server's reply are `trailing`, and belong to the stream.
"""

from __future__ import annotations

import enum

import attrs

from microvm.errors import GuestProtocolError
from microvm_guest.socks5.wire import (
    AUTH_VERSION,
    VERSION,
    BadAddress,
    Command,
    Credentials,
    Destination,
    Method,
    Reply,
    decode_destination,
    destination_length,
    encode_destination,
)


@attrs.frozen
class Answer:
    """What the server said of the request."""

    reply: Reply
    bound: Destination


class _State(enum.Enum):
    METHOD = enum.auto()
    AUTHENTICATION = enum.auto()
    REPLY = enum.auto()
    OVER = enum.auto()


class ClientHalf:
    """One request to a SOCKS5 server.

    Args:
        destination: Where to.
        command: What for.
        credentials: Offered to a server that wants them.
        eager: Send the request before the server has chosen a method. RFC 1928 has a client wait;
            a server that reads no more than each message, as ours does, does not mind.
    """

    def __init__(
        self,
        destination: Destination,
        command: Command = Command.CONNECT,
        credentials: Credentials | None = None,
        *,
        eager: bool = False,
    ) -> None:
        self._request = bytes((VERSION, command, 0)) + encode_destination(destination)
        self._credentials = credentials
        self._state = _State.METHOD
        self._received = bytearray()
        offered = [Method.NO_AUTHENTICATION]
        if credentials is not None:
            offered.append(Method.USERNAME_PASSWORD)
        self._outgoing = bytearray((VERSION, len(offered), *offered))
        if eager and credentials is None:
            self._outgoing += self._request
            self._request = b""
        self.answer: Answer | None = None

    def outgoing(self) -> bytes:
        """What is to be sent to the server now; it is given once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def feed(self, data: bytes | bytearray) -> None:
        """Take what the server has sent.

        Raises:
            GuestProtocolError: it is not SOCKS5, or wants what was not offered.
        """
        self._received += data
        steps = {
            _State.METHOD: self._method,
            _State.AUTHENTICATION: self._authentication,
            _State.REPLY: self._reply,
        }
        while (step := steps.get(self._state)) is not None and step():
            pass

    @property
    def missing(self) -> int:
        """How many bytes the server surely has yet to send. Who reads no more leaves the rest."""
        have = len(self._received)
        match self._state:
            case _State.METHOD | _State.AUTHENTICATION:
                return 2 - have
            case _State.REPLY:
                return 3 + destination_length(self._received[3:]) - have
            case _:
                return 0

    @property
    def trailing(self) -> bytes:
        """What came behind the reply."""
        return bytes(self._received) if self._state is _State.OVER else b""

    # --- states: each takes its message, or returns False to wait for the rest of it ---------

    def _violation(self, what: str) -> GuestProtocolError:
        return GuestProtocolError(f"The SOCKS5 server broke its protocol: {what}.")

    def _take_two(self, version: int) -> int | None:
        """The second byte of a message of two that begins with a version."""
        if self._received and self._received[0] != version:
            raise self._violation(f"it began with byte {self._received[0]}, not {version}")
        if len(self._received) < 2:
            return None
        value = self._received[1]
        del self._received[:2]
        return value

    def _method(self) -> bool:
        method = self._take_two(VERSION)
        if method is None:
            return False
        if method == Method.NO_AUTHENTICATION:
            self._outgoing += self._request
            self._state = _State.REPLY
        elif method == Method.USERNAME_PASSWORD and self._credentials is not None:
            name = self._credentials.username.encode()
            word = self._credentials.password.encode()
            self._outgoing += bytes((AUTH_VERSION, len(name))) + name + bytes((len(word),)) + word
            self._state = _State.AUTHENTICATION
        else:
            raise self._violation(f"it wants authentication method {method}")
        return True

    def _authentication(self) -> bool:
        status = self._take_two(AUTH_VERSION)
        if status is None:
            return False
        if status != 0:
            raise self._violation("it refused the name and password")
        self._outgoing += self._request
        self._state = _State.REPLY
        return True

    def _reply(self) -> bool:
        if self._received and self._received[0] != VERSION:
            raise self._violation(f"a reply of version {self._received[0]}")
        if len(self._received) < 4:
            return False
        try:
            reply = Reply(self._received[1])
            found = decode_destination(memoryview(self._received)[3:])
        except BadAddress as error:
            raise self._violation(f"it replied with {error}") from error
        except ValueError:
            raise self._violation(f"it replied with code {self._received[1]}") from None
        if found is None:
            return False
        bound, length = found
        del self._received[: 3 + length]
        self._state = _State.OVER
        self.answer = Answer(reply, bound)
        return False
