"""The two halves on trio streams. Not a byte more than the negotiation's is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from microvm.errors import GuestError, GuestGone, GuestRefused
from microvm_guest.socks5.server_half import Asked, Rejected
from microvm_guest.socks5.wire import REPLY_TEXT, Destination, Reply

if TYPE_CHECKING:
    from trio.abc import Stream

    from microvm_guest.socks5.client_half import ClientHalf
    from microvm_guest.socks5.server_half import ServerHalf


class ThroughGuestFailed(GuestError):
    """The guest's SOCKS5 server could not open a connection.

    Args:
        destination: To where.
        reply: What the server said.
    """

    code: ClassVar[str] = "guest.socks5"

    def __init__(self, destination: Destination, reply: Reply) -> None:
        super().__init__(
            f"The guest can't reach {destination}: {REPLY_TEXT[reply]} (SOCKS5 reply {reply:d}).",
            remedy="See in the guest: `ip route`, `cat /etc/resolv.conf`.",
        )
        self.reply = reply


class ThroughGuestRefused(ThroughGuestFailed, GuestRefused):
    """Nobody listens at the destination."""


def reply_of(error: BaseException) -> Reply:
    """What a client is told of an error of `request`."""
    return error.reply if isinstance(error, ThroughGuestFailed) else Reply.GENERAL_FAILURE


async def request(stream: Stream, half: ClientHalf, destination: Destination) -> Destination:
    """Have the server at the other end of `stream` do what `half` asks; the stream then is that.

    Returns:
        What the server is bound to.

    Raises:
        ThroughGuestRefused: nobody listens there.
        ThroughGuestFailed: another answer of the server's.
        GuestProtocolError: it is not a SOCKS5 server.
        GuestGone: it hung up.
        trio.BrokenResourceError: the stream broke.
    """
    while half.answer is None:
        if outgoing := half.outgoing():
            await stream.send_all(outgoing)
        data = await stream.receive_some(half.missing)
        if not data:
            raise GuestGone("The guest's SOCKS5 server hung up.")
        half.feed(data)
    reply = half.answer.reply
    if reply is Reply.SUCCEEDED:
        return half.answer.bound
    refused = reply is Reply.CONNECTION_REFUSED
    raise (ThroughGuestRefused if refused else ThroughGuestFailed)(destination, reply)


async def hear(stream: Stream, half: ServerHalf) -> Asked | None:
    """What a client asks for; None if it can't be served, has been told so, or has hung up.

    Raises:
        trio.BrokenResourceError: the stream broke.
    """
    while half.event is None:
        data = await stream.receive_some(half.missing)
        if not data:
            return None
        half.feed(data)
        if outgoing := half.outgoing():
            await stream.send_all(outgoing)
    return None if isinstance(half.event, Rejected) else half.event
