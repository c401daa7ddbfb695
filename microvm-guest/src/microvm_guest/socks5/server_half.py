"""The server's half of a SOCKS5 negotiation, without IO.

    GREETING --no authentication--> REQUEST --understood--> ASKED --reply()--> OVER
    GREETING --password--> AUTHENTICATION --accepted--> REQUEST
    GREETING, AUTHENTICATION, REQUEST --anything else--> OVER

`feed` what came, send `outgoing` after each `feed`, and look at `event`: None while more bytes are
needed, else the request, or why there will be none. A request is answered by `reply`. Bytes that
came behind the request are `trailing`, and belong to the stream. Bounded: a client that must be
answered first and speaks on is only heard as far as one `feed` reaches.
"""

from __future__ import annotations

import enum
import hmac

import attrs

from microvm_guest.socks5.wire import (
    AUTH_VERSION,
    UNSPECIFIED,
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
class Asked:
    """A request to be answered."""

    command: Command
    destination: Destination


@attrs.frozen
class Rejected:
    """There is nothing to serve: send what is outgoing and close."""

    why: str
    reply: Reply | None = None
    """What the client was told, where it had come as far as a request."""


class _State(enum.Enum):
    GREETING = enum.auto()
    AUTHENTICATION = enum.auto()
    REQUEST = enum.auto()
    ASKED = enum.auto()
    OVER = enum.auto()


def encode_reply(reply: Reply, bound: Destination = UNSPECIFIED) -> bytes:
    """An answer to a request (RFC 1928, 6)."""
    return bytes((VERSION, reply, 0)) + encode_destination(bound)


class ServerHalf:
    """One client's negotiation.

    Args:
        commands: What may be asked for; anything else is answered 0x07.
        credentials: What the client must know, or None to serve everybody.
    """

    def __init__(
        self,
        commands: frozenset[Command] = frozenset({Command.CONNECT}),
        credentials: Credentials | None = None,
    ) -> None:
        self._commands = commands
        self._credentials = credentials
        self._state = _State.GREETING
        self._received = bytearray()
        self._outgoing = bytearray()
        self.event: Asked | Rejected | None = None

    def feed(self, data: bytes | bytearray) -> None:
        """Take what the client has sent."""
        self._received += data
        steps = {
            _State.GREETING: self._greeting,
            _State.AUTHENTICATION: self._authentication,
            _State.REQUEST: self._request,
        }
        while (step := steps.get(self._state)) is not None and step():
            pass

    def outgoing(self) -> bytes:
        """What is to be sent to the client now; it is given once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def reply(self, reply: Reply, bound: Destination = UNSPECIFIED) -> bytes:
        """The answer to what was asked; from here on the stream is the caller's.

        Args:
            reply: How it went.
            bound: The server's own address of the connection, or of its UDP relay.
        """
        assert self._state is _State.ASKED
        self._state = _State.OVER
        return encode_reply(reply, bound)

    @property
    def missing(self) -> int:
        """How many bytes the client surely has yet to send. Who reads no more leaves the rest."""
        have = len(self._received)
        match self._state:
            case _State.GREETING:
                return 2 - have if have < 2 else 2 + self._received[1] - have
            case _State.AUTHENTICATION:
                if have < 2:
                    return 2 - have
                password_at = 2 + self._received[1]
                if have <= password_at:
                    return password_at + 1 - have
                return password_at + 1 + self._received[password_at] - have
            case _State.REQUEST:
                return 3 + destination_length(self._received[3:]) - have
            case _:
                return 0

    @property
    def trailing(self) -> bytes:
        """What came behind the request."""
        return bytes(self._received) if isinstance(self.event, Asked) else b""

    # --- states: each takes its message, or returns False to wait for the rest of it ---------

    def _take(self, length: int) -> bytes | None:
        if len(self._received) < length:
            return None
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _reject(self, why: str, answer: bytes = b"", reply: Reply | None = None) -> bool:
        self._state = _State.OVER
        self._received.clear()
        self._outgoing += answer
        self.event = Rejected(why, reply)
        return False

    def _greeting(self) -> bool:
        if self._received and self._received[0] != VERSION:
            # SOCKS4, HTTP, TLS: what an answer would look like is not for us to guess.
            return self._reject(f"it speaks version {self._received[0]}, not SOCKS5")
        if len(self._received) < 2:
            return False
        message = self._take(2 + self._received[1])
        if message is None:
            return False
        secret = self._credentials is not None
        method = Method.USERNAME_PASSWORD if secret else Method.NO_AUTHENTICATION
        if method not in message[2:]:
            refusal = bytes((VERSION, Method.NO_ACCEPTABLE))
            wanted = "a password" if secret else "no authentication"
            return self._reject(f"it does not offer {wanted}", refusal)
        self._outgoing += bytes((VERSION, method))
        self._state = _State.AUTHENTICATION if secret else _State.REQUEST
        return True

    def _authentication(self) -> bool:
        if self._received and self._received[0] != AUTH_VERSION:
            return self._reject("it breaks RFC 1929", bytes((AUTH_VERSION, 1)))
        if len(self._received) < 2:
            return False
        password_at = 2 + self._received[1]
        if len(self._received) <= password_at:
            return False
        message = self._take(password_at + 1 + self._received[password_at])
        if message is None:
            return False
        assert self._credentials is not None
        right = hmac.compare_digest(
            message[2:password_at], self._credentials.username.encode()
        ) & hmac.compare_digest(message[password_at + 1 :], self._credentials.password.encode())
        if not right:
            return self._reject("wrong name or password", bytes((AUTH_VERSION, 1)))
        self._outgoing += bytes((AUTH_VERSION, 0))
        self._state = _State.REQUEST
        return True

    def _request(self) -> bool:
        head = self._received[:4]
        if head and head[0] != VERSION:
            return self._refuse(Reply.GENERAL_FAILURE, f"a request of version {head[0]}")
        if len(head) < 4:
            return False
        try:
            found = decode_destination(memoryview(self._received)[3:])
        except BadAddress as error:
            return self._refuse(error.reply, str(error))
        if found is None:
            return False
        destination, length = found
        self._take(3 + length)
        if head[1] not in self._commands:
            return self._refuse(Reply.COMMAND_NOT_SUPPORTED, f"command {head[1]}")
        if head[1] == Command.CONNECT and destination.port == 0:
            return self._refuse(Reply.CONNECTION_REFUSED, "nobody has port 0")
        self._state = _State.ASKED
        self.event = Asked(Command(head[1]), destination)
        return False

    def _refuse(self, reply: Reply, why: str) -> bool:
        return self._reject(why, encode_reply(reply), reply)
