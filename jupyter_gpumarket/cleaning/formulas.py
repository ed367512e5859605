"""Markdown and LaTeX from a node: shown as such only when nothing in it can become a link, a picture, HTML or a macro.

JupyterLab does not sanitise the Markdown of an executed cell, and its formula typesetter knows commands that make
links, styles and attributes. Telling good from bad would need both parsers, so only plainly harmless text passes; the
rest is shown as plain text.
"""

from __future__ import annotations

import re

from jupyter_gpumarket.cleaning.images import Unfit
from jupyter_gpumarket.cleaning.text import without_colours, words

MAX_CHARS = 50_000
MAX_BRACES = 40

# What could begin HTML, a link, a picture, a reference, a diagram or a footnote; backslash escapes of these likewise.
_MARKDOWN_RISKS = re.compile(r"<|\]\s*[(:\[]|!\[|\[\^|&#|(?:`{3,}|~{3,})[ \t]*[^\s`~]|://|www\.|\S@\S", re.IGNORECASE)
_COMMAND = re.compile(r"\\([A-Za-z]+|.)?", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{([^{}]*)\}")
_BARE = re.compile(r"\\(?:begin|end)(?!\s*\{[^{}]*\})")

_ENVIRONMENTS = words(
    """
    matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix array cases aligned align align* gathered gather
    gather* equation equation* split
    """
)
_COMMANDS = words(
    """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi varpi rho varrho
    sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
    hbar ell Re Im aleph partial nabla infty emptyset varnothing imath jmath frac dfrac tfrac binom sqrt left right
    middle big Big bigg Bigg bigl bigr Bigl Bigr begin end over text textbf textit mathrm mathbf mathit mathsf
    mathtt mathcal mathbb mathfrak mathscr boldsymbol operatorname displaystyle textstyle scriptstyle limits
    nolimits overline underline overbrace underbrace hat widehat tilde widetilde bar vec dot ddot stackrel overset
    underset substack phantom hline quad qquad sum prod coprod int iint iiint oint bigcup bigcap bigoplus bigotimes
    lim limsup liminf sup inf max min arg det dim exp log ln lg sin cos tan cot sec csc sinh cosh tanh arcsin arccos
    arctan deg gcd hom ker Pr bmod pmod mod cdot times div pm mp ast star circ bullet oplus otimes odot wedge vee
    cap cup setminus leq le geq ge neq ne equiv approx sim simeq cong propto ll gg subset subseteq supset supseteq
    in ni notin forall exists nexists neg lnot land lor mid nmid parallel perp angle triangle to gets mapsto
    rightarrow leftarrow Rightarrow Leftarrow leftrightarrow Leftrightarrow longrightarrow longleftarrow implies iff
    uparrow downarrow hookrightarrow ldots cdots vdots ddots dots prime dagger dag langle rangle lfloor rfloor lceil
    rceil lvert rvert lVert rVert vert Vert lbrace rbrace colon top bot models vdash therefore because square
    blacksquare checkmark
    """
)
_SYMBOLS = frozenset(" ,;:!{}[]()|\\%$#&_-*.+>\n")


def clean_latex(text: str) -> str:
    """The formula, when each of its commands only draws.

    Raises:
        Unfit: a command or environment outside the list, too long or too deep.
    """
    text = without_colours(text)
    if len(text) > MAX_CHARS:
        raise Unfit(f"a formula of more than {MAX_CHARS:,} characters")
    if "<" in text and re.search(r"<[A-Za-z/!?]", text):
        raise Unfit("a formula with HTML")
    for found in _COMMAND.finditer(text):
        command = found[1] or ""
        if command not in _COMMANDS and command not in _SYMBOLS:
            raise Unfit(f"a formula with \\{command[:20]}")
    if _BARE.search(text) or any(found[1] not in _ENVIRONMENTS for found in _ENVIRONMENT.finditer(text)):
        raise Unfit("a formula with an unknown environment")
    _refuse_deep(text)
    return text


def clean_markdown(text: str) -> str:
    """The Markdown, when it is only emphasis, headings, lists, tables, code and harmless formulas.

    Raises:
        Unfit: it holds something that could become HTML, a link or a picture.
    """
    if _MARKDOWN_RISKS.search(text):
        raise Unfit("Markdown with links, pictures or HTML")
    return clean_latex(text)


def _refuse_deep(text: str) -> None:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth > MAX_BRACES:
            raise Unfit("a formula nested too deep")
