"""Plain text from a node: colours stay, every other control character is shown as a symbol instead of obeyed.

A terminal obeys escape sequences: they retitle it, write the clipboard (OSC 52), hide links (OSC 8), move the cursor
over earlier lines. Bidirectional controls reorder what is read. Kept are SGR (colour, bold) and `\\r \\n \\t \\b`.
"""

from __future__ import annotations

import re

RESET = "\x1b[0m"

# One alternation, one pass: a whole SGR sequence, or any single character that must not reach a terminal or a page.
# C0 without \b \t \n \r, DEL and C1; bidi controls and marks; line and paragraph separators; interlinear and tag
# characters (invisible text); lone surrogates (not valid in UTF-8 at all).
_SPECIAL = re.compile(
    "(?P<sgr>\x1b\\[[0-9;:]{0,64}m)"
    "|[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_UNFINISHED = re.compile("\x1b(?:\\[[0-9;:]{0,64})?\\Z")
_ANY_SGR = re.compile("\x1b\\[[0-9;:]*m")

# SGR parameters that hide or flash text: concealed text is how a copied command differs from the one that was read.
_UNWANTED_SGR = frozenset({"5", "6", "8"})


def clean_text(text: str) -> str:
    """Text with nothing in it that a terminal or a page would obey, besides colours and `\\r \\n \\t \\b`."""
    return _SPECIAL.sub(_replacement, text)


def without_colours(text: str) -> str:
    """Cleaned text without SGR sequences, for places that do not know them."""
    return _ANY_SGR.sub("", clean_text(text))


def one_line(text: str, limit: int = 200) -> str:
    """Cleaned, uncoloured, on one line, shortened: for names and reasons inside a sentence."""
    flat = " ".join(without_colours(text[: limit * 4]).replace("\b", "").split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def words(text: str) -> frozenset[str]:
    """The words of a list."""
    return frozenset(text.split())


class StreamText:
    """Cleans a stream that arrives in pieces: an SGR sequence cut in two is put together again."""

    def __init__(self) -> None:
        self._held = ""
        self._coloured = False

    def feed(self, piece: str) -> str:
        """The next piece, cleaned; a possible beginning of a sequence at its end is held back."""
        text = self._held + piece
        unfinished = _UNFINISHED.search(text)
        self._held = unfinished.group() if unfinished else ""
        cleaned = clean_text(text[: unfinished.start()] if unfinished else text)
        colours = _ANY_SGR.findall(cleaned)
        if colours:
            self._coloured = colours[-1] not in (RESET, "\x1b[m")
        return cleaned

    def finish(self) -> str:
        """What was held back, and a reset when a colour would leak into what others print."""
        rest = clean_text(self._held) + (RESET if self._coloured else "")
        self._held, self._coloured = "", False
        return rest


def collapse_overwritten(text: str) -> str:
    """Drop the states of a line that a later carriage return overwrites wholly: a flood of `\\r` costs one line.

    Only between two returns of the same line, where both begin at its first column; coloured lines stay as they are.
    """
    if "\r" not in text:
        return text
    return "\n".join(_collapse_line(line) for line in text.split("\n"))


def _collapse_line(line: str) -> str:
    if line.count("\r") < 2 or "\x1b" in line or "\b" in line or "\t" in line:
        return line
    first, *states = line.split("\r")
    ending = ""
    if states and not states[-1]:  # a line that ends in \r (as \r\n does) keeps it
        states.pop()
        ending = "\r"
    kept: list[str] = []
    for state in states:
        while kept and len(kept[-1]) <= len(state):
            kept.pop()
        kept.append(state)
    return "\r".join([first, *kept]) + ending


def _replacement(match: re.Match[str]) -> str:
    if match["sgr"]:
        return _fit_sgr(match["sgr"])
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"⟨U+{code:04X}⟩"


def _fit_sgr(sequence: str) -> str:
    """The sequence without the parameters that conceal or blink; colours' own arguments are no parameters."""
    parameters = sequence[2:-1].split(";")
    kept: list[str] = []
    index = 0
    while index < len(parameters):
        parameter = parameters[index].split(":")[0].lstrip("0") or "0"
        length = 1
        if parameters[index] in ("38", "48", "58") and index + 1 < len(parameters):
            length = {"5": 3, "2": 5}.get(parameters[index + 1].lstrip("0"), 1)
        if parameter not in _UNWANTED_SGR:
            kept.extend(parameters[index : index + length])
        index += length
    return f"\x1b[{';'.join(kept)}m" if kept else ""
