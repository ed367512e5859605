"""What a node sends, cleaned: every hostile payload loses its harm, every honest one keeps its content.

Each payload has its control: an independent reader finds the harm in it while it is raw.
"""

from __future__ import annotations

import base64
import contextlib
import re
import struct
import time
import zlib
from typing import Any

import pytest

from jupyter_gpumarket.cleaning.bundles import clean_bundle
from jupyter_gpumarket.cleaning.formulas import clean_latex, clean_markdown
from jupyter_gpumarket.cleaning.html import clean_html, is_public_link
from jupyter_gpumarket.cleaning.images import PNG_MAGIC, Unfit, check, clean_image
from jupyter_gpumarket.cleaning.structure import clean_json, clean_vega_lite
from jupyter_gpumarket.cleaning.svg import clean_svg
from jupyter_gpumarket.cleaning.text import StreamText, clean_text, collapse_overwritten, one_line
from tests.notebook.hostile import HTML, LATEX, MARKDOWN, SVG, TEXT, harms

# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("payload", HTML)
def test_hostile_html_loses_its_harm(payload: str) -> None:
    """Nothing that runs, loads, submits, names or misleads is left; raw, the reader objects."""
    assert harms(payload), "the control sees nothing"

    assert harms(clean_html(payload)) == []


@pytest.mark.parametrize("payload", HTML)
def test_cleaning_twice_changes_nothing(payload: str) -> None:
    """What comes out is a fixed point."""
    once = clean_html(payload)

    assert clean_html(once) == once


def test_there_are_enough_payloads() -> None:
    """The corpus does not shrink unnoticed."""
    assert len(HTML) + len(SVG) + len(TEXT) + len(MARKDOWN) + len(LATEX) >= 250
    assert len(set(HTML)) == len(HTML)


def test_a_table_of_pandas_stays_a_table() -> None:
    """Honest HTML keeps its content and structure."""
    table = (
        "<div><style scoped>.dataframe tbody tr th{vertical-align:top}</style>"
        '<table border="1" class="dataframe"><thead><tr style="text-align:right"><th></th><th>a</th></tr></thead>'
        "<tbody><tr><th>0</th><td>1.5</td></tr></tbody></table></div>"
    )

    assert clean_html(table) == (
        '<div><table border="1"><thead><tr><th></th><th>a</th></tr></thead>'
        "<tbody><tr><th>0</th><td>1.5</td></tr></tbody></table></div>"
    )


def test_a_picture_in_html_is_kept_when_it_is_one() -> None:
    """data: URLs of checked pictures stay."""
    html = f'<img src="data:image/png;base64,{png64(2, 2)}" width="20">'

    assert clean_html(html) == html


@pytest.mark.parametrize(
    ("url", "is_fit"),
    [
        ("https://pytorch.org/docs?q=1#a", True),
        ("https://example.org", True),
        ("http://example.org", False),
        ("https://localhost/", False),
        ("https://10.0.0.1/", False),
        ("https://intranet/", False),
        ("https://a.internal/", False),
        ("https://example.org:8888/", False),
        ("https://a@example.org/", False),
        ("https://example.org/ x", False),
        ("https://[", False),
        ("https://example.org:x/", False),
        ("https://" + "a" * 3000 + ".org", False),
    ],
)
def test_links_lead_to_the_public_net_only(url: str, is_fit: bool) -> None:
    """Neither this machine nor its net can be linked to."""
    assert is_public_link(url) is is_fit


@pytest.mark.parametrize(
    "document",
    [
        "<div>" * 200_000,
        "<b>" * 19_000 + "<p>x" * 5_000,
        "".join(f"<font a={n}>" for n in range(20_000)) + "<p>x" * 5_000,
        "<table><td>" * 60_000,
        "<a " + " ".join(f"x{n}" for n in range(200_000)) + ">",
        "<p title='" + "x" * 40_000 + "' " + " ".join(f"x{n}=1" for n in range(100_000)) + ">x",
        "<div><!--</div>-->" * 60_000,
        "<div><i></div></i>" * 60_000,
        "<svg><g>" * 50_000,
        "<" * 2_000_000,
        "<a" * 500_000,
        "&amp;" * 500_000,
        "<!--" * 300_000,
        "<p>" * 99_000,
        "<select>" * 60_000,
        "<x>" * 200_000,
        "x" * 5_000_000,
    ],
    ids=lambda document: document[:12],
)
def test_no_document_keeps_the_kernel_busy(document: str) -> None:
    """A parser bomb is refused or read within seconds."""
    started_s = time.process_time()
    with contextlib.suppress(Unfit):
        clean_html(document)

    assert time.process_time() - started_s < 3


def test_a_large_honest_table_passes() -> None:
    """Ten thousand rows are no bomb."""
    rows = "".join(f'<tr><td>{n}</td><td align="right">{n / 7}</td></tr>' for n in range(10_000))

    assert clean_html(f"<table><tbody>{rows}</tbody></table>").count("<tr>") == 10_000


# ── SVG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("payload", SVG, ids=range(len(SVG)))
def test_hostile_svg_is_refused(payload: str) -> None:
    """More than a picture, or too much of one, is not shown."""
    with pytest.raises(Unfit):
        clean_svg(payload)


def test_honest_svg_becomes_an_image_without_scripting() -> None:
    """A plot is shown as an <img>, where browsers run and load nothing."""
    plot = (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" '
        '"http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n'
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="10pt">'
        '<defs><path id="p" d="M0 0"/><clipPath id="c"><rect/></clipPath></defs>'
        '<g clip-path="url(#c)"><use xlink:href="#p"/><use xlink:href="#p"/></g></svg>'
    )
    found = re.fullmatch(r'<img alt="SVG picture" src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)">', clean_svg(plot))

    assert found
    assert base64.b64decode(found[1]).startswith(b"<svg")


def test_matplotlib_svg_passes() -> None:
    """What matplotlib writes is honest SVG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    file = io.StringIO()
    figure.savefig(file, format="svg")

    assert clean_svg(file.getvalue()).startswith("<img ")


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_OBEYED = re.compile(
    "\x1b(?!\\[[0-9;:]*m)|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069]"
)
_HIDDEN = re.compile("\x1b\\[(?:[0-9;]*;)?0*[568](?:;[0-9;]*)?m|[\ufeff\ud800\U000e0041]|\x1b\\[[0-9;:]{65,}m")


@pytest.mark.parametrize("what", sorted(TEXT))
def test_hostile_text_is_shown_and_not_obeyed(what: str) -> None:
    """Only colours and \\r \\n \\t \\b reach the terminal; raw, something would be obeyed or hidden."""
    payload = TEXT[what]
    assert _OBEYED.search(payload) or _HIDDEN.search(payload), "the control sees nothing"
    cleaned = clean_text(f"before {payload} after")

    assert not _OBEYED.search(cleaned)
    assert not _HIDDEN.search(cleaned)
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" after")
    cleaned.encode("utf-8")


def test_a_saved_terminal_state_shows_no_harm(tmp_path: Any) -> None:
    """Cleaning twice is cleaning once."""
    for payload in TEXT.values():
        assert clean_text(clean_text(payload)) == clean_text(payload)


def test_colours_and_progress_bars_stay() -> None:
    """tqdm's returns and pytest's colours are kept as they are."""
    honest = "\r 10%|█   | 1/10\r 20%|██  | 2/10\n\x1b[1;31mred\x1b[0m \x1b[38;5;8mgrey\x1b[0m a\tb\b\n"

    assert clean_text(honest) == honest


def test_a_sequence_cut_in_two_is_put_together() -> None:
    """A colour split between two messages is one colour, and nothing is lost or doubled."""
    stream = StreamText()

    assert stream.feed("a\x1b[3") + stream.feed("1mred") + stream.finish() == "a\x1b[31mred\x1b[0m"


def test_a_colour_does_not_leak_out_of_the_cell() -> None:
    """An open colour is reset at the end; what never ended is shown."""
    stream = StreamText()

    assert stream.feed("\x1b[31mx") + stream.finish() == "\x1b[31mx\x1b[0m"
    assert stream.feed("y\x1b[") + stream.finish() == "y␛["


@pytest.mark.parametrize(
    ("text", "collapsed"),
    [
        ("\ra\rbb\rccc", "\rccc"),
        ("x\ra\rbb", "x\rbb"),
        ("\rlong\rab", "\rlong\rab"),
        ("a\r\nb\r\n", "a\r\nb\r\n"),
        ("\ra\rb\r\n", "\rb\r\n"),
        ("\r\x1b[31ma\rb\rc", "\r\x1b[31ma\rb\rc"),
        ("none", "none"),
    ],
)
def test_overwritten_states_are_dropped_only_when_nothing_of_them_shows(text: str, collapsed: str) -> None:
    """A flood of returns costs one line; the line looks the same."""
    assert collapse_overwritten(text) == collapsed


def test_one_line_is_one_line() -> None:
    """Names in our own sentences have no breaks, colours or tricks."""
    assert one_line("a\nb\x1b[31m\u202ec" + "x" * 500, 20) == "a b⟨U+202E⟩cxxxxxxx…"


# ── Markdown and LaTeX ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("payload", MARKDOWN)
def test_hostile_markdown_is_not_rendered(payload: str) -> None:
    """Whatever could become a link, a picture or HTML is shown as its source."""
    with pytest.raises(Unfit):
        clean_markdown(payload)
    bundle = clean_bundle({"text/markdown": payload, "text/plain": "<Markdown object>"})
    assert "text/markdown" not in bundle.data
    assert payload.split("\n", maxsplit=1)[0] in bundle.data["text/plain"]


@pytest.mark.parametrize("payload", LATEX, ids=range(len(LATEX)))
def test_hostile_latex_is_not_typeset(payload: str) -> None:
    """Commands that make links, styles, attributes or macros are refused."""
    with pytest.raises(Unfit):
        clean_latex(payload)


@pytest.mark.parametrize(
    "honest",
    [
        "# Title\n\n- *a*\n- **b** `c`\n\n| x | y |\n|---|---|\n| 1 | 2 |\n",
        "$\\frac{1}{\\sqrt{2\\pi}} e^{-x^2/2}$",
        "$$\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}$$",
        "loss: 3 * 4 = 12, done!",
    ],
)
def test_honest_markdown_and_formulas_pass(honest: str) -> None:
    """Headings, lists, tables, emphasis and formulas stay as they are."""
    assert clean_markdown(honest) == honest


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, end: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(b"\0" * (1 + 3 * min(width, 100)) * min(height, 100))
    return PNG_MAGIC + header + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"") + end


def png64(width: int, height: int) -> str:
    return base64.b64encode(png(width, height)).decode()


def gif(frames: int, side: int = 1, *extra: bytes) -> bytes:
    size = struct.pack("<HH", side, side)
    frame = b"\x2c" + b"\0" * 4 + size + b"\0" + b"\x02" + b"\x01\0" + b"\0"
    return b"GIF89a" + size + b"\0\0\0" + b"".join(extra) + frame * frames + b"\x3b"


def jpeg(width: int, height: int, *extra: bytes, scans: int = 1) -> bytes:
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x00\x3f\x00" + b"\x12\xff\x00\x34"
    return b"\xff\xd8" + b"".join(extra) + frame + scan * scans + b"\xff\xd9"


@pytest.mark.parametrize(
    ("mime", "data"),
    [
        ("image/png", png(60_000, 60_000)),
        ("image/png", png(10_000, 10_000)),
        ("image/png", png(0, 5)),
        ("image/png", png(5, 5)[:-6]),
        ("image/png", png(5, 5)[:40]),
        ("image/png", b""),
        ("image/png", b"\x89PNG\r\n\x1a\n"),
        ("image/png", PNG_MAGIC + chunk(b"IDAT", b"") + chunk(b"IEND", b"")),
        ("image/png", png(5, 5, chunk(b"acTL", struct.pack(">II", 100_000, 0)))),
        ("image/png", png(5, 5, chunk(b"IHDR", b"\0" * 13))),
        ("image/png", png(5, 5).replace(b"IDAT", b"IDAX")),
        ("image/png", PNG_MAGIC + struct.pack(">I", 2**31) + b"IHDR"),
        ("image/png", gif(1)),
        ("image/jpeg", png(5, 5)),
        ("image/gif", png(5, 5)),
        ("image/gif", gif(100_000)),
        ("image/gif", gif(900, 16_000)),
        ("image/gif", gif(1, 65_535)),
        ("image/gif", gif(1)[:-3]),
        ("image/gif", gif(1, 1, b"\x99")),
        ("image/gif", b"GIF89a"),
        ("image/jpeg", jpeg(60_000, 60_000)),
        ("image/jpeg", jpeg(5, 5, scans=500)),
        ("image/jpeg", jpeg(5, 5)[:-2]),
        ("image/jpeg", b"\xff\xd8\xff"),
        ("image/jpeg", b"\xff\xd8\xff\xe0\x00\x00"),
        ("image/jpeg", b"\xff\xd8\xff\xd9"),
        ("image/png", b"<svg onload=alert(1)>"),
        ("image/png", b"<html><script>alert(1)</script>"),
    ],
)
def test_a_hostile_picture_is_refused(mime: str, data: bytes) -> None:
    """Bombs, wrong magic, damage and other files are not shown."""
    with pytest.raises(Unfit):
        check(mime, data)


@pytest.mark.parametrize(
    ("mime", "data", "smuggled"),
    [
        ("image/png", png(5, 5, chunk(b"tEXt", b"x\0<script>")), b"<script>"),
        ("image/png", png(5, 5, chunk(b"zTXt", b"x\0\0bomb")), b"bomb"),
        ("image/png", png(5, 5, chunk(b"iCCP", b"profile")), b"profile"),
        ("image/png", png(5, 5, end=b"PK\x03\x04zip"), b"PK\x03\x04"),
        ("image/gif", gif(1, 1, b"\x21\xfe\x08<script>\0"), b"<script>"),
        ("image/gif", gif(1) + b"<script>", b"<script>"),
        ("image/jpeg", jpeg(5, 5, b"\xff\xfe\x00\x0a<script>"), b"<script>"),
        ("image/jpeg", jpeg(5, 5, b"\xff\xe1\x00\x0aExif\0\0xy"), b"Exif"),
        ("image/jpeg", jpeg(5, 5) + b"<script>", b"<script>"),
    ],
)
def test_what_does_not_draw_is_left_out(mime: str, data: bytes, smuggled: bytes) -> None:
    """Text, profiles and files behind the end do not get into the notebook; the raw bytes hold them."""
    assert smuggled in data
    picture = check(mime, data)

    assert smuggled not in picture.data
    assert check(mime, picture.data) == picture


@pytest.mark.parametrize("text", ["!!!", "AAA", "iVBO RRR", "data:image/png;base64,AAAA", "é", "A" * 50_000_000])
def test_only_strict_base64_is_a_picture(text: str) -> None:
    """Other characters, wrong length and too much are refused."""
    with pytest.raises(Unfit):
        clean_image("image/png", text)


def test_a_real_figure_passes() -> None:
    """What matplotlib draws, base64 with line ends as IPython sends it."""
    import io

    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    for mime, name in (("image/png", "png"), ("image/jpeg", "jpeg")):
        file = io.BytesIO()
        figure.savefig(file, format=name)
        assert clean_image(mime, base64.encodebytes(file.getvalue()).decode())


# ── JSON and charts ──────────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
CHART: dict[str, Any] = {
    "$schema": SCHEMA,
    "data": {"values": [{"a": 1, "b": "x"}]},
    "mark": {"type": "bar"},
    "encoding": {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "b", "type": "nominal"}},
}


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"url": "https://evil.example/x.json"}},
        {"data": {"url": "/api/contents"}},
        {"data": {"values": "a,b", "format": {"type": "csv"}}},
        {"data": {"sequence": {"start": 0, "stop": 10**12}}},
        {"usermeta": {"embedOptions": {"loader": {"target": "_top"}}}},
        {"usermeta": {"embedOptions": {"sourceHeader": "<script>"}}},
        {"transform": [{"calculate": "datum.a", "as": "c"}]},
        {"params": [{"name": "p", "expr": "1"}]},
        {"encoding": {"href": {"value": "javascript:alert(1)"}}},
        {"encoding": {"url": {"value": "https://evil.example/x.png"}}},
        {"mark": {"type": "image", "url": "https://evil.example/x.png"}},
        {"mark": {"type": "bar", "href": "https://evil.example"}},
        {"encoding": {"x": {"field": "a'] + alert(1) + ['"}}},
        {"encoding": {"x": {"field": "a", "axis": {"labelExpr": "alert(1)"}}}},
        {"title": {"text": {"expr": "alert(1)"}}},
        {"title": "https://evil.example"},
        {"config": {"font": "javascript:alert(1)"}},
        {"datasets": {"a": "a,b"}},
        {"$schema": "https://evil.example/v5.json"},
        {"$schema": "https://vega.github.io/schema/vega/v5.json"},
    ],
    ids=lambda change: str(change)[:50],
)
def test_a_chart_that_loads_or_computes_is_refused(change: dict[str, Any]) -> None:
    """Only inline data and drawing keys pass; the same chart without the change does."""
    assert clean_vega_lite(CHART) == CHART
    with pytest.raises(Unfit):
        clean_vega_lite({**CHART, **change})


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "content", [deep(1000), [0] * 300_000, "x" * 200_000, 2**80, {1: 2}, {"k" * 2000: 1}, object(), {"a": {3}}]
)
def test_json_out_of_bounds_is_refused(content: Any) -> None:
    """Too deep, too many, too long, or no JSON at all."""
    with pytest.raises(Unfit):
        clean_json(content)


def test_json_keeps_its_data_without_tricks() -> None:
    """Values stay; control characters in text are shown."""
    assert clean_json({"a": [1, 2.5, None, True, "x\u202ey"]}) == {"a": [1, 2.5, None, True, "x⟨U+202E⟩y"]}


# ── bundles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "mime",
    [
        "application/javascript",
        "text/javascript",
        "application/vnd.jupyter.widget-view+json",
        "application/vnd.plotly.v1+json",
        "application/vnd.bokehjs_exec.v0+json",
        "application/vnd.bokehjs_load.v0+json",
        "application/vnd.holoviews_exec.v0+json",
        "application/vnd.vega.v5+json",
        "application/geo+json",
        "application/pdf",
        "text/html+evil",
        "TEXT/HTML",
        "text/vnd.mermaid",
        "image/webp",
        "image/svg",
        "application/xhtml+xml",
        "text/xml",
        "application/vnd.jupyter.es-module",
        "application/vnd.code.notebook.error",
        "x" * 10_000,
    ],
)
def test_a_type_that_is_not_on_the_list_is_left_out_with_a_note(mime: str) -> None:
    """Unknown renderers get nothing; the reader is told."""
    bundle = clean_bundle({mime: "alert(1)", "text/plain": "fallback"})

    assert set(bundle.data) == {"text/plain"}
    assert bundle.data["text/plain"].startswith("fallback\n[left out: ")
    assert len(bundle.data["text/plain"]) < 300


def test_html_that_lost_something_says_so_in_the_page() -> None:
    """A script's absence is visible where the reader looks."""
    bundle = clean_bundle({"text/html": "<b>x</b><script>1</script>", "text/plain": "x"})

    assert bundle.data["text/html"].startswith("<b>x</b>")
    assert "left out: text/html in part (&lt;script&gt;)" in bundle.data["text/html"]


def test_honest_bundles_pass_without_a_note() -> None:
    """A figure and a frame are shown as they are."""
    figure = clean_bundle({"image/png": png64(3, 3) + "\n", "text/plain": "<Figure>"}, {"image/png": {"width": 300}})
    frame = clean_bundle({"text/html": "<table><tbody><tr><td>1</td></tr></tbody></table>", "text/plain": "1"})

    assert figure.data == {"image/png": png64(3, 3), "text/plain": "<Figure>"}
    assert figure.metadata == {"image/png": {"width": 300}}
    assert frame.notes == ()
    assert "left out" not in str(frame.data)


@pytest.mark.parametrize(
    "metadata",
    [
        {"image/png": {"width": "300", "height": 1e9, "unconfined": True}},
        {"isolated": True},
        {"text/html": {"isolated": True}},
        {"jupyter": {"source_hidden": True}},
        {"needs_background": "light"},
        {"image/png": "x"},
    ],
)
def test_metadata_that_steers_the_page_is_dropped(metadata: dict[str, Any]) -> None:
    """Only a picture's plain size stays."""
    assert clean_bundle({"image/png": png64(3, 3)}, metadata).metadata == {}


@pytest.mark.parametrize("content", [None, 5, {"a": 1}, [1], b"x"])
def test_content_of_the_wrong_shape_is_left_out(content: Any) -> None:
    """A bundle whose text is no text shows the note only."""
    assert set(clean_bundle({"text/html": content}).data) == {"text/plain"}


def test_a_crowd_of_types_is_bounded() -> None:
    """A thousand types are not looked at one by one."""
    bundle = clean_bundle({f"a/{n}": "x" for n in range(1000)})

    assert "980 more types" in bundle.data["text/plain"]
