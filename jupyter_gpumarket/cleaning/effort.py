"""How much work a document would be for an HTML parser, before one reads it.

A browser-grade parser is quadratic in three things that a hostile document can have plenty of: depth, attributes of one
tag, and formatting tags left open (each following block opens all of them again). Small documents cannot do harm. Large
ones must be regular enough to be counted by a simple reader; generated tables are.
"""

from __future__ import annotations

import re
from collections import Counter

from jupyter_gpumarket.cleaning.images import Unfit
from jupyter_gpumarket.cleaning.text import words

MAX_HTML_CHARS = 4_000_000
SMALL_CHARS = 30_000
MAX_TAGS = 100_000
MAX_DEPTH = 300
MAX_OPEN_FORMATTING = 20
MAX_ATTRIBUTES = 50

_TOKEN = re.compile(
    r"""(?P<text>[^<]++|<(?![a-zA-Z/!?]))
      | <(?P<name>[a-zA-Z][a-zA-Z0-9-]*+)
        (?P<attributes>(?:\s++[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'=<>`]++))?+)*+)\s*+/?+>
      | </(?P<closing>[a-zA-Z][a-zA-Z0-9-]*+)\s*+>
      | <!--(?:(?!--|>).)(?:(?!--).)*+-->
      | <!doctype[^<>"']*+>""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""\s++[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'=<>`]++))?+""")
_VOID = words(
    """
    area base br col embed hr img input link meta param source track wbr
    """
)
# Their next sibling ends them, so that they need no closing tag; they nest only by way of tags that are counted.
_SELF_ENDING = words(
    """
    p li dd dt td th tr tbody thead tfoot colgroup option optgroup rp rt
    """
)
_RAW_TEXT = words(
    """
    script style title textarea
    """
)
_IRREGULAR = words(
    """
    iframe noembed noframes noscript plaintext xmp
    """
)
_FORMATTING = words(
    """
    a b big code em font i nobr s small strike strong tt u
    """
)


def refuse_too_much(html: str) -> None:
    """Look whether a parser reads this in a bounded time.

    Raises:
        Unfit: it might not.
    """
    if len(html) > MAX_HTML_CHARS:
        raise Unfit(f"HTML of more than {MAX_HTML_CHARS:,} characters")
    if len(html) <= SMALL_CHARS:
        return
    at, tags = 0, 0
    open_tags: Counter[str] = Counter()
    while at < len(html):
        token = _TOKEN.match(html, at)
        if token is None:
            raise Unfit("large HTML that is not regular enough to be checked")
        at = token.end()
        if token["name"]:
            tags += 1
            name = token["name"].lower()
            _count_opening(name, token["attributes"], open_tags)
            if name in _RAW_TEXT:
                at = _after_raw_text(html, at, name)
                open_tags[name] -= 1
        elif token["closing"] and open_tags[token["closing"].lower()] > 0:
            open_tags[token["closing"].lower()] -= 1
        if tags > MAX_TAGS:
            raise Unfit(f"HTML of more than {MAX_TAGS:,} tags")


def _count_opening(name: str, attributes: str, open_tags: Counter[str]) -> None:
    if name in _IRREGULAR:
        raise Unfit(f"large HTML with <{name}>")
    if len(attributes) > 100 and sum(1 for _ in _ATTRIBUTE.finditer(attributes)) > MAX_ATTRIBUTES:
        raise Unfit(f"an HTML tag of more than {MAX_ATTRIBUTES} attributes")
    if name in _VOID or name in _SELF_ENDING:
        return
    open_tags[name] += 1
    if open_tags.total() > MAX_DEPTH:
        raise Unfit(f"HTML of more than {MAX_DEPTH} levels")
    if name in _FORMATTING and sum(open_tags[tag] for tag in _FORMATTING) > MAX_OPEN_FORMATTING:
        raise Unfit(f"HTML with more than {MAX_OPEN_FORMATTING} formatting tags left open")


def _after_raw_text(html: str, at: int, name: str) -> int:
    """Where the text ends that browsers do not read as HTML. A script with a comment in it ends by odder rules."""
    end = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(html, at)
    if end is None or (name == "script" and "<!--" in html[at : end.start()]):
        raise Unfit(f"large HTML with a <{name}> that does not end plainly")
    return end.start()
