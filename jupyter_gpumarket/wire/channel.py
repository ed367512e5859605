"""The resumable conversation: numbers, acknowledgements, resending. Pure, no I/O, no clock.

A `Channel` is one end of a conversation and lives as long as its process. An `Attachment` is one byte stream under it;
there may be many, one after another, and a stale one may go on delivering while a newer one is up. Whatever is cut and
wherever: each message is delivered once and in order, as long as both processes live.

What must hold:
1. A message is kept until the other end's application has taken it (`Ack`), and sent again from the number that the
   other end names in its `Hello`.
2. Numbers belong to a pair of identities. One end dials, the other answers, and the answering end alone decides whether
   the conversation goes on: it does for the process that it knows, unless that one knows another than us. Else it takes
   a new identity, which makes both ends begin anew: what was unacknowledged is dropped, and `Restarted` is delivered,
   once, after everything that the former conversation had delivered.
3. At most `WINDOW_BYTES` (and one message) are unacknowledged; a peer that sends more breaks the protocol. So memory is
   bounded at both ends, and a stream is always read: a slow application never hides a ping or an acknowledgement.
4. The newest stream on which the other end has said hello supersedes the older ones. The dialling end numbers its
   streams, so that a hello that was long under way does not pass for the newest.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.frames import (
    MAX_PAYLOAD_BYTES,
    Ack,
    AnyFrame,
    Data,
    FrameDecoder,
    Hello,
    Ping,
    Pong,
    data_frame,
    encode_frame,
)
from jupyter_gpumarket.wire.messages import PROTOCOL

WINDOW_BYTES = 16 * 1024 * 1024
# Counted on top of each message, so that a flood of tiny ones is bounded as well.
MESSAGE_COST_BYTES = 128


class Received(msgspec.Struct, frozen=True):
    """The next message; it goes back to `Channel.consumed` when the application has taken it."""

    payload: bytes
    conversation: int


class Restarted(msgspec.Struct, frozen=True):
    """The conversation begins anew, mostly because the other end is a new process."""

    boot_id: str


class Answered(msgspec.Struct, frozen=True):
    """The Pong to our Ping."""

    number: int


Event = Received | Restarted | Answered
Emit = Callable[[Event], None]


def cost(payload: bytes) -> int:
    """What a message counts against the window, in bytes."""
    return len(payload) + MESSAGE_COST_BYTES


class Channel:
    """One end of a conversation. `answers` is true at the end that is dialled."""

    def __init__(self, boot_id: str, *, answers: bool = False, max_unacked_bytes: int = WINDOW_BYTES) -> None:
        if not 0 < max_unacked_bytes <= WINDOW_BYTES:
            raise ValueError(f"max_unacked_bytes must be between 1 and {WINDOW_BYTES}")
        self.boot_id = boot_id
        self.peer_boot_id = ""
        self.answers = answers
        # The generation of the newest attachment that was greeted; older ones are superseded.
        self.newest_greeted = 0
        self._max_unacked_bytes = max_unacked_bytes
        self._attachments = 0
        self._conversation = 0
        self._waiting_bytes_in_all = 0
        self._newest_stream = 0
        self._begin()

    def _begin(self) -> None:
        self._conversation += 1
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0
        self._sent = 0
        self._acked = 0
        self._received = 0
        self._consumed = 0
        self._waiting_bytes = 0

    # ── the application's side ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_room(self) -> bool:
        """Whether another message may be queued now."""
        return self._kept_bytes < self._max_unacked_bytes

    @property
    def unacknowledged(self) -> int:
        """How many messages the other end has not taken yet."""
        return len(self._kept)

    def queue(self, payload: bytes) -> None:
        """Number a message and keep it until it is acknowledged.

        Raises:
            WireError: it does not fit into a frame.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise WireError(f"a message of {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} fit into a frame")
        self._sent += 1
        self._kept[self._sent] = payload
        self._kept_bytes += cost(payload)

    def consumed(self, message: Received) -> None:
        """The application has taken the oldest message that waited."""
        self._waiting_bytes_in_all -= cost(message.payload)
        if message.conversation == self._conversation:
            self._consumed += 1
            self._waiting_bytes -= cost(message.payload)

    def attach(self) -> Attachment:
        """A new byte stream under the conversation."""
        self._attachments += 1
        return Attachment(self, self._attachments)

    # ── the attachments' side ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def taken(self) -> int:
        """The number of the last message that the application has taken: what may be acknowledged."""
        return self._consumed

    @property
    def identity(self) -> str:
        """Who this end is in the present conversation."""
        return f"{self.boot_id}.{self._conversation}" if self.answers else self.boot_id

    def hello(self, stream: int) -> Hello:
        """How this end begins a stream."""
        return Hello(
            protocol=PROTOCOL, boot=self.identity, to_boot=self.peer_boot_id, received=self._received, stream=stream
        )

    def kept(self, seq: int) -> bytes | None:
        """The message with this number, unless it is acknowledged or not yet there."""
        return self._kept.get(seq)

    def accept(self, hello: Hello, emit: Emit) -> int | None:
        """Go on or begin anew; returns the number after which to send, or None for a stream older than the newest.

        Raises:
            WireError: the answering end claims to go on, with numbers that cannot be.
        """
        is_first = not self.peer_boot_id
        received = hello.received if hello.to_boot == self.identity else 0
        goes_on = is_first or hello.boot == self.peer_boot_id
        if self.answers:
            if not is_first and goes_on and hello.stream < self._newest_stream:
                return None
            self._newest_stream = hello.stream
            # The hello may have been said before our first answer arrived: then it names nobody.
            knows_us = hello.to_boot in {"", self.identity}
            goes_on = is_first or (goes_on and knows_us and received <= self._sent)
        elif goes_on and not (hello.to_boot == self.boot_id and self._acked <= received <= self._sent):
            raise WireError(f"the other end wants to go on after message {hello.received}, which does not fit")
        if not goes_on:
            self._begin()
            emit(Restarted(hello.boot))
        self.peer_boot_id = hello.boot
        # More may have been acknowledged on another stream since this hello was said.
        return max(self._acked, received) if goes_on else 0

    def take(self, data: Data, emit: Emit) -> None:
        """A message from the other end; what is known already is dropped.

        Raises:
            WireError: one is missing before it, or the other end ignores the window.
        """
        if data.seq <= self._received:
            return
        if data.seq != self._received + 1:
            raise WireError(f"message {data.seq} came after {self._received}")
        # What a former conversation delivered may still wait, once.
        if self._waiting_bytes >= WINDOW_BYTES or self._waiting_bytes_in_all >= 2 * WINDOW_BYTES:
            raise WireError(f"the other end sent more than {WINDOW_BYTES} bytes ahead of our acknowledgement")
        self._received = data.seq
        self._waiting_bytes += cost(data.payload)
        self._waiting_bytes_in_all += cost(data.payload)
        emit(Received(data.payload, self._conversation))

    def acknowledge(self, upto: int) -> None:
        """The other end's application has taken messages up to this number.

        Raises:
            WireError: there are not so many.
        """
        if upto > self._sent:
            raise WireError(f"message {upto} was acknowledged; there are only {self._sent}")
        for seq in range(self._acked + 1, upto + 1):
            self._kept_bytes -= cost(self._kept.pop(seq))
        self._acked = max(self._acked, upto)


class Attachment:
    """One byte stream under a channel. After an error it must be dropped."""

    def __init__(self, channel: Channel, generation: int) -> None:
        self._channel = channel
        self._generation = generation
        self._decoder = FrameDecoder()
        self._greeted = False
        self._stale = False
        self._said_hello = False
        self._cursor = 0
        self._acked = -1
        self._pong: int | None = None
        self._ping: int | None = None

    @property
    def is_greeted(self) -> bool:
        """Whether the other end has said hello on this stream."""
        return self._greeted

    @property
    def is_superseded(self) -> bool:
        """Whether a newer stream has taken over: nothing that comes here counts any more."""
        return self._stale or self._generation < self._channel.newest_greeted

    def ping(self, number: int) -> None:
        """Ask for a Pong with the next bytes."""
        self._ping = number

    def feed(self, data: bytes, emit: Emit) -> None:
        """Tell, one by one, what the application gets to see of these bytes.

        Raises:
            WireError: the other end broke the protocol.
        """
        if self.is_superseded:
            return
        for frame in self._decoder.feed(data):
            if not self._stale:
                self._take(frame, emit)

    def bytes_to_send(self, limit: int) -> bytes:
        """What to write next, about `limit` bytes of it at most; empty when nothing is due."""
        if self.is_superseded:
            return b""
        out: list[bytes] = []
        # The answering end waits for the other's hello: it decides under which identity the conversation goes on.
        if not self._said_hello and (self._greeted or not self._channel.answers):
            self._said_hello = True
            out.append(encode_frame(self._channel.hello(self._generation)))
        if self._greeted:
            self._write_small(out)
            self._write_data(out, limit)
        return b"".join(out)

    def _write_small(self, out: list[bytes]) -> None:
        if self._pong is not None:
            out.append(encode_frame(Pong(number=self._pong)))
            self._pong = None
        if self._ping is not None:
            out.append(encode_frame(Ping(number=self._ping)))
            self._ping = None
        if self._acked < self._channel.taken:
            self._acked = self._channel.taken
            out.append(encode_frame(Ack(upto=self._acked)))

    def _write_data(self, out: list[bytes], limit: int) -> None:
        written = 0
        while written < limit and (payload := self._channel.kept(self._cursor + 1)) is not None:
            self._cursor += 1
            out += data_frame(self._cursor, payload)
            written += len(payload)

    def _take(self, frame: AnyFrame, emit: Emit) -> None:
        if isinstance(frame, Hello):
            self._take_hello(frame, emit)
        elif not self._greeted:
            raise WireError("the other end did not begin with a hello")
        elif isinstance(frame, Data):
            self._channel.take(frame, emit)
        elif isinstance(frame, Ack):
            self._channel.acknowledge(frame.upto)
            # An older stream may have delivered them after the other end said hello on this one.
            self._cursor = max(self._cursor, frame.upto)
        elif isinstance(frame, Ping):
            self._pong = frame.number
        else:
            emit(Answered(frame.number))

    def _take_hello(self, hello: Hello, emit: Emit) -> None:
        if self._greeted:
            raise WireError("the other end said hello twice")
        if hello.protocol != PROTOCOL:
            raise WireError(
                f"the other end speaks protocol {hello.protocol}, this one {PROTOCOL}: "
                "use the same version of jupyter_gpumarket on both sides"
            )
        cursor = self._channel.accept(hello, emit)
        if cursor is None:
            self._stale = True
            return
        self._cursor = cursor
        self._greeted = True
        self._channel.newest_greeted = self._generation
