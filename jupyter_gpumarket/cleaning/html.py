"""HTML from a node: an allow-list of tags and attributes, no way to load, run, submit or name anything.

Pictures only as checked `data:` URLs, links only to https hosts of the public net and only on a click. No styles, ids,
classes, names or `data-*` (JupyterLab acts on some of them), no SVG or MathML (they change how a browser reads what
follows). What comes out is cleaned again and must not change: what a second reading sees otherwise is not shown.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import nh3

from jupyter_gpumarket.cleaning.effort import refuse_too_much
from jupyter_gpumarket.cleaning.images import CHECKS, Unfit, clean_image
from jupyter_gpumarket.cleaning.text import without_colours, words

TAGS = words(
    """
    a abbr b bdi blockquote br caption center cite code col colgroup dd del details dfn div dl dt em figcaption
    figure h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark meter ol p pre progress q rp rt ruby s samp small span strike
    strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr
    """
)
# These go with what is inside: their content is code, or text that browsers read by other rules.
TAGS_WITH_CONTENT = words(
    """
    applet audio base canvas embed frame frameset head iframe link math meta noembed noframes noscript object param
    plaintext portal script select style svg template textarea title video xmp
    """
)
ATTRIBUTES: dict[str, set[str]] = {
    "*": {"dir", "lang"},
    "a": {"href"},
    "abbr": {"title"},
    "col": {"span", "align"},
    "colgroup": {"span", "align"},
    "details": {"open"},
    "img": {"src", "alt", "width", "height"},
    "li": {"value"},
    "meter": {"value", "min", "max", "low", "high", "optimum"},
    "ol": {"start", "reversed"},
    "progress": {"value", "max"},
    "table": {"border", "align"},
    "td": {"colspan", "rowspan", "align"},
    "th": {"colspan", "rowspan", "align", "scope"},
    "tr": {"align"},
}
_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?\Z")
_PIXELS = re.compile(r"(?:\d{1,4}(?:\.\d{1,9})?(?:px)?|\d{1,3}%)\Z")
_WORD = re.compile(r"[A-Za-z-]{0,20}\Z")
_SPAN = re.compile(r"\d{1,3}\Z")
_NUMERIC = frozenset({"value", "min", "max", "low", "high", "optimum", "start"})
_DATA_URL = re.compile(r"data:(image/(?:png|jpeg|gif));base64,", re.IGNORECASE)
_MISSED = re.compile(
    r"<\s*(script|iframe|svg|math|canvas|video|audio|object|embed|form|input|button|select|textarea)(?=[\s/>])",
    re.IGNORECASE,
)
_PUBLIC_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\Z")


def clean_html(html: str) -> str:
    """The part of the document that may be shown.

    Raises:
        Unfit: too large or too deep to read in a bounded time, or it reads differently each time.
    """
    refuse_too_much(html)
    cleaned = _clean_once(html)
    again = _clean_once(cleaned)
    if again != cleaned:
        cleaned, again = again, _clean_once(again)
        if again != cleaned:
            raise Unfit("HTML that reads differently each time")
    return cleaned


def left_out(html: str) -> list[str]:
    """What a reader may miss: the kinds of active or embedded content in the document, for a note."""
    return sorted({found[1].lower() for found in _MISSED.finditer(html)})


def _clean_once(html: str) -> str:
    cleaned = nh3.clean(
        html,
        tags=set(TAGS),
        clean_content_tags=set(TAGS_WITH_CONTENT),
        attributes=ATTRIBUTES,
        attribute_filter=_fit_attribute,
        strip_comments=True,
        link_rel="noopener noreferrer nofollow",
        generic_attribute_prefixes=set(),
        url_schemes={"https", "data"},
        url_relative="deny",
    )
    # Afterwards, since a character reference can spell what must not be seen.
    return without_colours(cleaned)


def _fit_attribute(tag: str, attribute: str, value: str) -> str | None:
    """The value as it may stay, or None. Kept simple: each attribute has one shape."""
    if attribute == "src":
        return _fit_picture(value)
    if attribute == "href":
        return value if is_public_link(value) else None
    if attribute in ("alt", "title"):
        return value[:500]
    return value if _shape(tag, attribute).match(value) else None


def _shape(tag: str, attribute: str) -> re.Pattern[str]:
    if attribute in _NUMERIC:
        return _NUMBER
    if attribute in ("colspan", "rowspan", "span", "border"):
        return _SPAN
    if tag == "img" and attribute in ("width", "height"):
        return _PIXELS
    return _WORD


def _fit_picture(url: str) -> str | None:
    """The same picture, rebuilt; None for everything that is not one of the checked kinds."""
    found = _DATA_URL.match(url.strip())
    if not found or found[1].lower() not in CHECKS:
        return None
    try:
        return f"data:{found[1].lower()};base64,{clean_image(found[1].lower(), url.strip()[found.end() :])}"
    except Unfit:
        return None


def is_public_link(url: str) -> bool:
    """Whether a link leads by https to a named host of the public net: not to this machine, its net, or this page."""
    if len(url) > 2_000 or not url.isascii() or re.search(r"[\s\\<>\"'`\x00-\x20\x7f]", url):
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or parts.username is not None or port not in (None, 443):
        return False
    return bool(_PUBLIC_HOST.match(host)) and not _is_local(host)


def _is_local(host: str) -> bool:
    if host.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa", ".localdomain")):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
