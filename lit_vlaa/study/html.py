"""A report as one HTML file that loads nothing: styles and pictures are inside, scripts there are none.

The page forbids itself everything else by its content security policy, so that text of a policy or a data file that got
through the escaping could still not act.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from lit_vlaa.study.document import (
    Answered,
    ArmName,
    Badge,
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Example,
    Heading,
    Paragraph,
    Picture,
    Table,
    pieces,
    visible,
)
from lit_vlaa.study.palette import colours

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class Safe(str):
    """HTML that is escaped already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Safe:
    """An element; children that are not `Safe` are escaped, attributes always are (`class_` is `class`)."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{attribute(value)}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, Safe) else text(child) for child in children)
    return Safe(f"<{name}{words}>{inner}</{name}>")


def text(content: str) -> Safe:
    """Text of an element."""
    return Safe(escape(visible(content), quote=True))


def attribute(content: str) -> Safe:
    """Text of an attribute, in one line."""
    return Safe(escape(" ".join(visible(content).split()), quote=True))


def page(document: Document) -> str:
    """The whole file."""
    dots = {arm: f"arm{place}" for place, arm in enumerate(document.arms)}
    body = "\n".join(_block(block, dots) for block in document.blocks)
    sections = [block for block in document.blocks if isinstance(block, Heading) and block.level == 2]
    links = [tag("a", heading.text, href=f"#{anchor(heading.text)}") for heading in sections]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{attribute(POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            tag("title", document.title),
            f"<style>{_STYLE}{_arm_styles(document.arms)}</style></head><body><main>",
            tag("h1", document.title),
            tag("p", document.lead, class_="lead"),
            tag("nav", *links, aria_label="sections"),
            body,
            "</main></body></html>",
            "",
        ]
    )


def anchor(heading: str) -> str:
    """The name by which a section is linked."""
    return "-".join("".join(char if char.isascii() and char.isalnum() else " " for char in heading.lower()).split())


def _block(block: Block, dots: Mapping[str, str]) -> Safe:  # noqa: PLR0911 (one for each)
    match block:
        case Heading(words, level):
            return tag(f"h{level}", words, id=anchor(words))
        case Paragraph(words, small):
            return tag("p", words, **({"class_": "note"} if small else {}))
        case Bullets(items):
            return tag("ul", *(tag("li", item) for item in items))
        case Code(words):
            return tag("pre", tag("code", words), tabindex="0")
        case Table():
            return _table(block, dots)
        case Picture():
            return _picture(block)
        case Example():
            return _example(block, dots)


def _table(table: Table, dots: Mapping[str, str]) -> Safe:
    def kind(column: int) -> dict[str, str]:
        if table.words or column < table.left:
            return {"class_": "label"} if column else {}
        return {"class_": "number"}

    head = tag("thead", tag("tr", *(tag("th", cell, scope="col", **kind(at)) for at, cell in enumerate(table.head))))

    def label(column: int) -> dict[str, str]:
        """On narrow screens a row of words stands as a block, where its head is not seen."""
        return {"data_label": table.head[column]} if table.words and table.head[column] else {}

    rows = [
        tag("tr", *(tag("td", _cell(cell, dots), **kind(at), **label(at)) for at, cell in enumerate(row)))
        for row in table.rows
    ]
    caption = (tag("caption", table.caption),) if table.caption else ()
    title = table.caption or "table"
    inner = tag("table", *caption, head, tag("tbody", *rows), **({"class_": "words"} if table.words else {}))
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label=title)


def _cell(cell: Cell, dots: Mapping[str, str]) -> Safe:
    match cell:
        case Badge(words, tone):
            return tag("span", words, class_=f"badge {tone}")
        case ArmName(name):
            return _arm(name, dots)
        case _:
            return text(cell)


def _arm(name: str, dots: Mapping[str, str]) -> Safe:
    return tag("span", tag("i", class_=f"dot {dots.get(name, '')}"), name, class_="arm")


def _picture(picture: Picture) -> Safe:
    light, dark = (_data(content, "image/svg+xml") for content in (picture.light, picture.dark))
    image = Safe(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{attribute(picture.alt)}"></picture>'
    )
    return tag("figure", tag("div", image, class_="wide", tabindex="0"), tag("figcaption", picture.caption))


def _example(example: Example, dots: Mapping[str, str]) -> Safe:
    if example.image is None:
        image = tag("div", f"no picture: {example.no_image}", class_="placeholder")
    else:
        image = Safe(f'<img src="{_data(example.image, example.image_type)}" alt="the picture of the question">')
    asked = tag(
        "div",
        image,
        tag(
            "div", tag("p", example.question, dir="auto", class_="text"), tag("p", "Truth: ", tag("bdi", example.truth))
        ),
        class_="asked",
    )
    answers = tag("div", *(_answer(answer, dots) for answer in example.answers), class_="answers")
    return tag("section", tag("h3", example.title), asked, answers, class_="example")


def _answer(answer: Answered, dots: Mapping[str, str]) -> Safe:
    marks = {True: ("right", "good"), False: ("wrong", "bad"), None: ("no verdict", "none")}
    word, tone = marks[answer.right]
    parts = [tag("mark", part) if marked else text(part) for part, marked in pieces(answer.response, answer.cues)]
    return tag(
        "article",
        tag("header", _arm(answer.arm, dots), tag("span", word, class_=f"badge {tone}")),
        tag("p", answer.facts, class_="note"),
        tag("div", *(parts or [tag("em", "(empty)")]), class_="text response", dir="auto"),
    )


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _arm_styles(arms: tuple[str, ...]) -> str:
    def rules(dark: bool) -> str:
        shades = colours(arms, dark=dark)
        return "".join(f".arm{place}{{background:{shades[arm]}}}" for place, arm in enumerate(arms))

    return f"{rules(dark=False)}@media(prefers-color-scheme:dark){{{rules(dark=True)}}}"


def json_safe(value: Any) -> Any:
    """Values that JSON can carry: halves of surrogate pairs, which no file can hold, become their code."""
    match value:
        case str():
            return "".join(f"⟨U+{ord(char):04X}⟩" if 0xD800 <= ord(char) < 0xE000 else char for char in value)
        case Mapping():
            return {json_safe(str(key)): json_safe(one) for key, one in value.items()}
        case list() | tuple():
            return [json_safe(one) for one in value]
        case _:
            return value


_STYLE = """
:root{color-scheme:light dark;--page:#ffffff;--text:#1b1f24;--soft:#59636e;--line:#d1d9e0;--panel:#f6f8fa;
--good:#0b6e3b;--good-page:#dcf5e6;--bad:#a3240f;--bad-page:#fde8e2;--open:#5a4300;--open-page:#fdf1cf;
--mark:#ffe58a;--mark-text:#1b1f24;--link:#0a58ca}
@media(prefers-color-scheme:dark){:root{--page:#14181d;--text:#e4e8ec;--soft:#9aa5b1;--line:#36404a;--panel:#1c222a;
--good:#7fe0a8;--good-page:#12351f;--bad:#ffab96;--bad-page:#441b12;--open:#f4d67a;--open-page:#3a3010;
--mark:#6b5200;--mark-text:#fff6d6;--link:#7db4ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.25;margin:.2em 0 .3em}h2{font-size:1.3rem;margin:2.4em 0 .5em;padding-top:.4em;
border-top:1px solid var(--line)}h3{font-size:1.05rem;margin:1.6em 0 .4em}
h1,h2,h3,p,li{overflow-wrap:anywhere}p,ul{max-width:80ch}.lead{font-size:1.08rem}
a{color:var(--link)}nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:1em 0;font-size:.92rem}
.note{color:var(--soft);font-size:.88rem;margin:.3em 0}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;margin:.6em 0;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;color:var(--soft);font-size:.88rem;padding:.2em 0 .4em}
th,td{padding:6px 12px 6px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;white-space:nowrap}td{overflow-wrap:break-word;white-space:pre-line;max-width:62ch}
td.label{min-width:8em}.words td:last-child{min-width:22em}
td.number,th.number{text-align:right;white-space:nowrap}
.badge{display:inline-block;padding:1px 9px;border-radius:10px;font-size:.85rem;font-weight:600;white-space:nowrap;
background:var(--panel);color:var(--soft);border:1px solid var(--line)}
.good{background:var(--good-page);color:var(--good);border-color:transparent}
.bad{background:var(--bad-page);color:var(--bad);border-color:transparent}
.open{background:var(--open-page);color:var(--open);border-color:transparent}
.arm{white-space:nowrap;font-weight:600}
.dot{display:inline-block;width:.72em;height:.72em;border-radius:50%;margin-right:.45em}
figure{margin:1em 0}figure img{display:block;width:100%;min-width:560px;max-width:900px;height:auto}
figcaption{color:var(--soft);font-size:.88rem;max-width:80ch;margin-top:.3em}
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:10px 12px;overflow-x:auto;
font-size:.85rem}
.example{margin:1.2em 0 2.2em}.asked{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}
.asked img,.placeholder{width:160px;max-width:100%;border:1px solid var(--line);border-radius:6px;flex:none}
.placeholder{padding:14px 10px;color:var(--soft);font-size:.82rem;background:var(--panel);overflow-wrap:anywhere}
.asked>div:last-child{flex:1 1 260px;min-width:0}.asked p{margin:.2em 0}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,290px),1fr));gap:12px;margin-top:10px}
article{border:1px solid var(--line);border-radius:8px;padding:10px 12px;min-width:0;background:var(--panel)}
article header{display:flex;justify-content:space-between;gap:8px;flex-wrap:wrap}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.response{font-size:.87rem;line-height:1.45;max-height:24em;overflow-y:auto;margin-top:.3em}
mark{background:var(--mark);color:var(--mark-text);border-radius:3px;padding:0 2px}
@media(max-width:720px){.words thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.words,.words tbody,.words tr,.words td{display:block;max-width:none}.words tr{border-bottom:1px solid var(--line);
padding:8px 0}.words td,.words td:last-child{border:0;padding:2px 0;min-width:0;overflow-wrap:anywhere}
.words td[data-label]::before{content:attr(data-label) ": ";color:var(--soft)}}
@media print{.response{max-height:none}}
""".strip()
