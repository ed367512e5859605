"""A run's messages: what is published for each kind, in which bounds, and that joining them changes nothing."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpumarket.cleaning.html import clean_html
from jupyter_gpumarket.cleaning.images import Unfit, check
from jupyter_gpumarket.cleaning.messages import (
    MAX_DISPLAYS,
    Clear,
    Display,
    Failure,
    MessageCleaner,
    Shown,
    Stream,
    Truncated,
    clean_failure,
    coalesce,
)
from jupyter_gpumarket.cleaning.svg import clean_svg
from jupyter_gpumarket.cleaning.text import StreamText, clean_text
from tests.notebook.fakes import shown
from tests.notebook.hostile import HTML, SVG, harms


def display(text: str = "x", display_id: str = "", kind: str = "display_data") -> tuple[str, dict[str, Any]]:
    return shown(kind, {"text/plain": text}, display_id)


def feed(cleaner: MessageCleaner, *messages: tuple[str, dict[str, Any]]) -> list[Shown]:
    return [one for kind, content in messages for one in cleaner.feed(kind, content, {})]


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind",
    [
        "comm_open",
        "comm_msg",
        "comm_close",
        "comm_info_reply",
        "execute_input",
        "execute_reply",
        "execute_request",
        "input_request",
        "status",
        "debug_event",
        "kernel_info_reply",
        "inspect_reply",
        "shutdown_reply",
        "iopub_welcome",
        "display_data\x00",
        "STREAM",
        "",
        "_stream",
        "__class__",
    ],
)
def test_a_message_of_another_kind_is_dropped(kind: str) -> None:
    """Widgets, prompts, replies and the unknown never reach the page; they are counted."""
    cleaner = MessageCleaner("r")
    content = {"name": "stdout", "text": "x", "data": {"text/plain": "x"}, "payload": [{"source": "set_next_input"}]}

    assert cleaner.feed(kind, content, {}) == []
    assert cleaner.left_out == 1


def test_payloads_in_a_known_message_are_not_passed_on() -> None:
    """Only the known fields of a message are looked at."""
    content = {"data": {"text/plain": "x"}, "payload": [{"source": "ask_exit"}], "execution_count": 10**30}

    assert set(feed(MessageCleaner("r"), ("execute_result", content))[0].__struct_fields__) == {
        "data",
        "metadata",
        "display_id",
        "update",
        "is_result",
    }


@pytest.mark.parametrize("content", [{}, {"text": None}, {"text": 5}, {"text": ["x"]}, {"name": {}, "text": {}}])
def test_a_stream_without_text_is_nothing(content: dict[str, Any]) -> None:
    """Shapes that are no stream are dropped."""
    assert feed(MessageCleaner("r"), ("stream", content)) == []


# ── display ids ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_runs_output_cannot_be_updated() -> None:
    """The same id in two runs is two ids; an update of an id that this run never showed is dropped."""
    first, second = MessageCleaner("r1"), MessageCleaner("r2")
    one = feed(first, display("x", "bar"))[0]
    two = feed(second, display("x", "bar"))[0]
    assert isinstance(one, Display)
    assert isinstance(two, Display)

    assert one.display_id != two.display_id
    assert feed(second, display("forged", one.display_id, "update_display_data")) == []
    assert feed(second, display("forged", "gpum-cost-r2", "update_display_data")) == []


def test_a_node_cannot_choose_its_display_id() -> None:
    """Whatever it sends, the published id is ours and begins with the run's name."""
    for sent in ("gpum-cost-1", "gpum-r1-x", "x" * 900, "\ud800", "a\x00b"):
        made = feed(MessageCleaner("r1"), display("x", sent))[0]
        assert isinstance(made, Display)
        assert made.display_id.startswith("gpum-r1-")
        assert made.display_id != sent


def test_display_ids_are_bounded() -> None:
    """Ten thousand ids do not fill the memory."""
    cleaner = MessageCleaner("r")
    made = feed(cleaner, *[display("x", f"d{n}") for n in range(MAX_DISPLAYS - 1)])

    assert len({one.display_id for one in made if isinstance(one, Display)}) <= 1001


# ── amounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flood_of_displays_is_bounded_and_told_once() -> None:
    """A million displays become two thousand and one note."""
    cleaner = MessageCleaner("r")
    made = feed(cleaner, *[display()] * (MAX_DISPLAYS * 3))

    assert len(made) == MAX_DISPLAYS + 1
    assert isinstance(made[-1], Truncated)


def test_a_flood_of_text_is_bounded_and_told_once() -> None:
    """After 20 MB the rest is only on disk; the error at the end is still seen."""
    cleaner = MessageCleaner("r")
    made = feed(cleaner, *[("stream", {"name": "stdout", "text": "x" * 1_000_000})] * 30)
    size = sum(len(one.text) for one in made if isinstance(one, Stream))
    end = feed(cleaner, ("error", {"ename": "E", "evalue": "v", "traceback": []}))

    assert size <= 20_000_000
    assert [type(one) for one in made].count(Truncated) == 1
    assert isinstance(end[0], Failure)


def test_a_flood_of_clears_is_one_clear() -> None:
    """A million clear_output cost one."""
    assert coalesce([Clear(wait=True)] * 100_000) == [Clear(wait=True)]
    assert coalesce([Stream(name="stdout", text="x"), Clear(wait=False)] * 1000) == [Clear(wait=False)]


def test_a_flood_of_returns_is_one_line() -> None:
    """A progress bar that turns a million times is cleaned and joined in a moment."""
    cleaner = MessageCleaner("r")
    started_s = time.process_time()
    made = feed(cleaner, *[("stream", {"name": "stderr", "text": f"\r{n:7d}"}) for n in range(100_000)])
    frame = coalesce(made)

    assert frame == [Stream(name="stderr", text="\r  99999")]
    assert time.process_time() - started_s < 10


def test_an_error_is_bounded() -> None:
    """A traceback of a million lines is shortened, from its end."""
    failure = clean_failure("E" * 10_000, "v" * 10**6, [f"line {n}\x1b]0;t\x07" for n in range(10_000)])

    assert len(failure.name) <= 100
    assert len(failure.value) <= 10_000
    assert len(failure.traceback) <= 500
    assert "line 9999" in failure.traceback[-1]
    assert "\x1b]" not in "".join(failure.traceback)


@pytest.mark.parametrize("traceback", [None, "text", {"a": 1}, [1, 2], [None]])
def test_an_error_of_odd_shape_is_an_error(traceback: object) -> None:
    """Whatever stands for the traceback, the failure is told."""
    assert clean_failure(None, None, traceback).name == "Error"


# ── joining ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Page:
    """A front end, as far as outputs go: what is on it after a sequence of messages."""

    def __init__(self) -> None:
        self.outputs: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.clear_next = False

    def show(self, one: Shown) -> None:
        if isinstance(one, Clear):
            self.clear_next = one.wait
            if not one.wait:
                self.outputs, self.ids = [], []
            return
        if isinstance(one, Display) and one.update:
            for place, known in enumerate(self.ids):
                if known == one.display_id:
                    self.outputs[place] = ("display", one.data["text/plain"])
            return
        if self.clear_next:
            self.outputs, self.ids, self.clear_next = [], [], False
        if isinstance(one, Stream):
            if self.outputs and self.outputs[-1][0] == one.name:
                self.outputs[-1] = (one.name, self.outputs[-1][1] + one.text)
            else:
                self.outputs.append((one.name, one.text))
                self.ids.append("")
        elif isinstance(one, Display):
            self.outputs.append(("display", one.data["text/plain"]))
            self.ids.append(one.display_id)


messages = st.one_of(
    st.builds(Stream, name=st.sampled_from(["stdout", "stderr"]), text=st.text("ab\n", min_size=1, max_size=3)),
    st.builds(
        lambda text, display_id: Display(data={"text/plain": text}, metadata={}, display_id=display_id),
        st.text("xy", max_size=2),
        st.sampled_from(["", "d1", "d2"]),
    ),
    st.builds(
        lambda text, display_id: Display(data={"text/plain": text}, metadata={}, display_id=display_id, update=True),
        st.text("xy", max_size=2),
        st.sampled_from(["d1", "d2"]),
    ),
    st.builds(Clear, wait=st.booleans()),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(messages, max_size=12))
def test_a_joined_frame_leaves_the_same_page(sequence: list[Shown]) -> None:
    """Whatever comes, the page after the joined frame is the page after each message."""
    one_by_one, joined = Page(), Page()
    for one in sequence:
        one_by_one.show(one)
    for one in coalesce(sequence):
        joined.show(one)

    assert joined.outputs == one_by_one.outputs


# ── any input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_text_is_cleaned_the_same_however_it_is_cut(pieces: list[str]) -> None:
    """A stream in pieces is the stream in one piece."""
    stream = StreamText()
    whole = StreamText()
    in_pieces = "".join(stream.feed(piece) for piece in pieces) + stream.finish()

    assert in_pieces == whole.feed("".join(pieces)) + whole.finish()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b[];0mA\x07\u202e")), max_size=60))
def test_any_text_is_a_fixed_point_without_controls(text: str) -> None:
    """Cleaning leaves only colours, and cleaning again changes nothing."""
    cleaned = clean_text(text)

    assert clean_text(cleaned) == cleaned
    assert not any(character < " " and character not in "\x1b\r\n\t\b" for character in cleaned)
    assert "\u202e" not in cleaned


fragments = st.sampled_from(
    [
        *HTML,
        "<",
        ">",
        "</",
        '"',
        "'",
        "<b>",
        "</b>",
        "<table>",
        "<td>",
        "<svg>",
        "<math>",
        "<style>",
        "-->",
        "<!--",
        "x",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(fragments, st.text(max_size=8)), max_size=6))
def test_any_mixture_of_hostile_html_is_cleaned(parts: list[str]) -> None:
    """Payloads in any order, nested into each other, lose their harm; the result is a fixed point."""
    try:
        cleaned = clean_html("".join(parts))
    except Unfit:
        return

    assert harms(cleaned) == []
    assert clean_html(cleaned) == cleaned


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["image/png", "image/jpeg", "image/gif"]), st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_a_picture_or_refused(mime: str, data: bytes, head: int) -> None:
    """No bytes break the checks in another way than Unfit."""
    magic = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"][head]
    with contextlib.suppress(Unfit):
        check(mime, magic + data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SVG), st.integers(0, 400), st.text(max_size=5))
def test_any_damaged_svg_is_refused_or_a_picture(payload: str, place: int, put: str) -> None:
    """No text breaks the reader in another way than Unfit; what passes is an image tag."""
    with contextlib.suppress(Unfit):
        assert clean_svg(payload[:place] + put + payload[place:]).startswith("<img ")


json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
kinds = st.sampled_from(
    ["stream", "display_data", "update_display_data", "execute_result", "clear_output", "error", "truncated", "x"]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            kinds,
            st.dictionaries(
                st.sampled_from(
                    ["data", "text", "name", "metadata", "transient", "ename", "evalue", "traceback", "wait", "note"]
                ),
                json,
                max_size=5,
            ),
        ),
        max_size=6,
    )
)
def test_any_messages_are_published_or_dropped(sequence: list[tuple[str, dict[str, Any]]]) -> None:
    """No content of any shape breaks the cleaner, and what is published can be sent."""
    cleaner = MessageCleaner("r")
    for one in coalesce([*feed(cleaner, *sequence), *cleaner.finish()]):
        if isinstance(one, Stream):
            one.text.encode("utf-8")
