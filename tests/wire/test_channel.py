"""The resumable conversation under any cut, chunking and stale delivery."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire import frames
from jupyter_gpumarket.wire.channel import WINDOW_BYTES, Attachment, Channel, Event, Received, Restarted


class Wire:
    """One stream between two attachments: bytes under way in both directions."""

    def __init__(self, ends: tuple[Attachment, Attachment]) -> None:
        self.ends = ends
        self.under_way = (bytearray(), bytearray())
        self.cut = False


class End:
    """A channel and what its application has sent and taken."""

    def __init__(self, boot_id: str, *, answers: bool) -> None:
        self.channel = Channel(boot_id, answers=answers)
        self.sent: list[bytes] = []
        self.waiting: list[Received] = []
        self.taken: list[bytes] = []

    def emit(self, event: Event) -> None:
        assert not isinstance(event, Restarted), "both processes live"
        if isinstance(event, Received):
            self.waiting.append(event)


class Conversation(RuleBasedStateMachine):
    """Two ends, any number of streams at once, cut and delivered in any way."""

    wires = Bundle("wires")

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End("dialling", answers=False), End("answering", answers=True))
        self.alive: list[Wire] = []

    @rule(target=wires)
    def connect(self) -> Wire:
        wire = Wire((self.ends[0].channel.attach(), self.ends[1].channel.attach()))
        self.alive.append(wire)
        return wire

    @rule(wire=wires)
    def greet(self, wire: Wire) -> None:
        """Both hellos go through: without this shortcut most streams would be cut before they carry anything."""
        for end in (0, 1, 0):
            self.write(wire, end, 1)
            self.deliver(wire, 1 - end, 10**9)

    @rule(wire=wires, end=st.integers(0, 1))
    def carry(self, wire: Wire, end: int) -> None:
        """All that is due goes one way at once."""
        self.write(wire, end, 10**9)
        self.deliver(wire, 1 - end, 10**9)

    @rule(end=st.integers(0, 1), size=st.integers(0, 40))
    def send(self, end: int, size: int) -> None:
        payload = b"%d:" % len(self.ends[end].sent) + b"x" * size
        self.ends[end].channel.queue(payload)
        self.ends[end].sent.append(payload)

    @rule(end=st.integers(0, 1), count=st.integers(1, 5))
    def take(self, end: int, count: int) -> None:
        application = self.ends[end]
        for message in application.waiting[:count]:
            application.channel.consumed(message)
            application.taken.append(message.payload)
        del application.waiting[:count]

    @rule(wire=wires, end=st.integers(0, 1), limit=st.integers(1, 100))
    def write(self, wire: Wire, end: int, limit: int) -> None:
        if not wire.cut:
            wire.under_way[end].extend(wire.ends[end].bytes_to_send(limit))

    @rule(wire=wires, end=st.integers(0, 1), size=st.integers(1, 200))
    def deliver(self, wire: Wire, end: int, size: int) -> None:
        """A stale stream goes on delivering here too: nothing says that it must be the newest."""
        chunk = bytes(wire.under_way[1 - end][:size])
        del wire.under_way[1 - end][:size]
        if chunk:
            wire.ends[end].feed(chunk, self.ends[end].emit)

    @rule(wire=consumes(wires))
    def cut(self, wire: Wire) -> None:
        wire.cut = True
        for direction in wire.under_way:
            direction.clear()

    @precondition(lambda self: self.alive)
    @invariant()
    def nothing_lost_doubled_or_reordered_so_far(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            heard = end.taken + [message.payload for message in end.waiting]
            assert heard == other.sent[: len(heard)]

    def teardown(self) -> None:
        """One good stream at the end delivers all the rest."""
        wire = self.connect()
        for _ in range(6):
            for end in (0, 1):
                while data := wire.ends[end].bytes_to_send(1000):
                    wire.under_way[end].extend(data)
                self.deliver(wire, 1 - end, 10**9)
                self.take(1 - end, 10**9)
        for end, other in (self.ends, self.ends[::-1]):
            assert end.taken == other.sent
            assert end.channel.unacknowledged == 0


@pytest.mark.parametrize("part", range(4))
def test_long_random_walks_lose_and_double_nothing(part: int) -> None:
    """600 seeded walks over three streams at a time, biased towards streams that overlap."""
    for seed in range(part * 150, part * 150 + 150):
        rng = random.Random(seed)
        walk = Conversation()
        wires = [walk.connect() for _ in range(3)]
        for _ in range(120):
            wire, end = rng.choice(wires), rng.randrange(2)
            step = rng.random()
            if step < 0.06:
                wires[rng.randrange(3)] = walk.connect()
            elif step < 0.4:
                walk.write(wire, end, rng.choice([1, 10**9]))
            elif step < 0.75:
                walk.deliver(wire, end, rng.choice([5, 10**9]))
            elif step < 0.9:
                walk.send(end, rng.randrange(10))
            else:
                walk.take(end, rng.randrange(1, 4))
            walk.nothing_lost_doubled_or_reordered_so_far()
        walk.teardown()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


def join(dialling: Channel, answering: Channel, heard: list[Event]) -> tuple[Attachment, Attachment]:
    """A stream on which both have said hello; `heard` gets what both applications hear."""
    ends = dialling.attach(), answering.attach()
    ends[1].feed(ends[0].bytes_to_send(1 << 20), heard.append)
    ends[0].feed(ends[1].bytes_to_send(1 << 20), heard.append)
    return ends


def test_a_restarted_peer_is_told_once_and_numbers_begin_anew() -> None:
    """After the answering process was replaced, the dialling end hears `Restarted` and both count from 1."""
    heard: list[Event] = []
    dialling = Channel("d")
    join(dialling, Channel("a", answers=True), heard)
    dialling.queue(b"for the old one")

    join(dialling, replacement := Channel("b", answers=True), heard)
    ends = join(dialling, replacement, heard)
    dialling.queue(b"for the new one")
    ends[1].feed(ends[0].bytes_to_send(1000), heard.append)

    assert heard == [Restarted("b.1"), Received(b"for the new one", 1)]


def test_a_late_stream_of_a_dead_process_does_not_break_the_living_one() -> None:
    """A hello of a former dialling process makes both ends begin anew, and never ends in a refusal for good."""
    heard: list[Event] = []
    answering = Channel("a", answers=True)
    dead, living = Channel("dead"), Channel("living")
    join(dead, answering, heard)
    ends = join(living, answering, heard)
    living.queue(b"one")
    ends[1].feed(ends[0].bytes_to_send(1000), heard.append)
    answering.consumed(heard[-1])
    ends[0].feed(ends[1].bytes_to_send(1000), heard.append)
    join(dead, answering, heard)

    heard.clear()
    ends = join(living, answering, heard)
    living.queue(b"two")
    ends[1].feed(ends[0].bytes_to_send(1000), heard.append)

    assert [type(event) for event in heard] == [Restarted, Restarted, Received]
    assert heard[-1].payload == b"two"


def test_a_lost_first_answer_loses_nothing() -> None:
    """When the stream is cut before the first answer arrives, the next one carries all, with no restart told."""
    heard: list[Event] = []
    dialling, answering = Channel("d"), Channel("a", answers=True)
    dialling.queue(b"question")
    answering.queue(b"answer")
    stream = dialling.attach(), answering.attach()
    stream[1].feed(stream[0].bytes_to_send(1000), heard.append)
    stream[1].bytes_to_send(1000)

    ends = join(dialling, answering, heard)
    ends[1].feed(ends[0].bytes_to_send(1000), heard.append)

    assert sorted(event.payload for event in heard) == [b"answer", b"question"]


@pytest.mark.parametrize(
    "broken",
    [
        frames.Data(seq=2, payload=b"one is missing"),
        frames.Ack(upto=1),
        frames.Hello(protocol=1, boot="again", to_boot="", received=0, stream=1),
    ],
)
def test_numbers_that_cannot_be_end_the_stream(broken: frames.AnyFrame) -> None:
    """A gap, an acknowledgement of the unsent and a second hello are refused."""
    ends = join(Channel("d"), Channel("a", answers=True), [])

    with pytest.raises(WireError):
        ends[1].feed(frames.encode_frame(broken), lambda _: None)


def test_another_protocol_version_is_refused_by_its_number() -> None:
    """A newer peer, with fields we do not know, gets a message that names both versions."""
    hello = frames._ENCODER.encode([0, 2, "new", "", 0, 1, "a field of version 2"])
    stream = frames.LENGTH.pack(len(hello)) + hello

    with pytest.raises(WireError, match="protocol 2, this one 1"):
        Channel("a", answers=True).attach().feed(stream, lambda _: None)


def test_nothing_counts_before_the_hello() -> None:
    """A stream that begins with data is refused."""
    with pytest.raises(WireError, match="hello"):
        Channel("a", answers=True).attach().feed(frames.encode_frame(frames.Data(seq=1, payload=b"")), lambda _: None)


def test_a_peer_that_ignores_the_window_is_refused() -> None:
    """What waits for a slow application is bounded, also in tiny messages."""
    heard: list[Event] = []
    ends = join(Channel("d"), Channel("a", answers=True), heard)
    tiny = [frames.encode_frame(frames.Data(seq=n, payload=b"")) for n in range(1, WINDOW_BYTES // 100)]

    with pytest.raises(WireError, match="ahead of our acknowledgement"):
        ends[1].feed(b"".join(tiny), heard.append)
    assert len(heard) < WINDOW_BYTES / 128 + 2


@pytest.mark.parametrize("seed", range(40))
def test_hostile_bytes_meet_only_wire_errors(seed: int) -> None:
    """Random and mutated streams end in WireError or in silence, never in another error or unbounded memory."""
    rng = random.Random(seed)
    good = Channel("d")
    for _ in range(20):
        good.queue(rng.randbytes(rng.randrange(60)))
    other = Channel("a", answers=True)
    ends = join(good, other, [])
    stream = bytearray(frames.encode_frame(good.hello(9)) + ends[0].bytes_to_send(1 << 20))
    for _ in range(rng.randrange(1, 8)):
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    if seed % 4 == 0:
        stream = bytearray(rng.randbytes(5000))

    for victim in (Channel("v", answers=True), Channel("w")):
        attachment = victim.attach()
        try:
            for at in range(0, len(stream), 7):
                attachment.feed(bytes(stream[at : at + 7]), lambda _: None)
        except WireError:
            pass
        assert attachment._decoder.buffered_bytes <= len(stream)


def test_a_hello_long_under_way_does_not_end_the_newer_stream() -> None:
    """The dialling end's order of streams counts, not the order in which their hellos arrive."""
    heard: list[Event] = []
    dialling, answering = Channel("d"), Channel("a", answers=True)
    slow_hello = dialling.attach().bytes_to_send(1000)
    quick = join(dialling, answering, heard)
    slow = answering.attach()

    slow.feed(slow_hello, heard.append)

    assert slow.is_superseded
    assert not quick[1].is_superseded


def test_what_an_older_stream_delivered_is_not_waited_for() -> None:
    """An acknowledgement of messages that this stream has not carried moves it on behind them."""
    heard: list[Event] = []
    dialling, answering = Channel("d"), Channel("a", answers=True)
    old = join(dialling, answering, heard)
    new = dialling.attach(), answering.attach()
    new[1].feed(new[0].bytes_to_send(1000), heard.append)
    said = new[1].bytes_to_send(1000)
    answering.queue(b"on the old stream")
    old[0].feed(frames.encode_frame(frames.Data(seq=1, payload=b"on the old stream")), heard.append)
    dialling.consumed(heard[-1])
    new[0].feed(said, heard.append)
    new[1].feed(new[0].bytes_to_send(1000), heard.append)

    answering.queue(b"on the new stream")
    new[0].feed(new[1].bytes_to_send(1000), heard.append)

    assert [event.payload for event in heard] == [b"on the old stream", b"on the new stream"]
