"""What pages hold beside their own text: made when the site is built, at marks of the form `<!-- made: NAME -->`.

- `commands`: the help of every tool, as `lit-vlaa COMMAND --help` prints it
- `configs`: every shipped file of `configs/`, its head comment as text and the rest as code
- `departures`: what modules' docstrings say of departures from the paper
- `picture NAME`: an SVG of `docs/images`, within the page so that it takes the page's colours
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lit_vlaa", "callbacks", "datamodules")

_MARK = re.compile(r"<!-- made: (\w+) -->")
_PICTURE = re.compile(r"<!-- made: picture (\w+) -->")
_CODE = re.compile(r"<code>[^<]+</code>")
_FLAG = re.compile(r"(?<![\w-])--\w+")
_WIDTH = "100"

_DEPARTURE = re.compile(r"Departures?(?= from the paper|\n)")

_LANGUAGES = {".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".txt": "text"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts generated text in the place of marks (mkdocs calls this for each page)."""
    return _MARK.sub(lambda mark: _MAKERS[mark[1]](), with_plain_pipes(with_lists_apart(markdown)))


def on_page_content(content: str, **_: Any) -> str:
    """Puts pictures in the place of marks, keeps a flag's hyphens with its name (mkdocs calls this for each page)."""
    content = _CODE.sub(lambda code: _FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), content)
    return _PICTURE.sub(lambda mark: (ROOT / "docs" / "images" / f"{mark[1]}.svg").read_text(encoding="utf-8"), content)


def with_lists_apart(markdown: str) -> str:
    """Puts an empty line between a paragraph and a list below it, which Markdown on GitHub does without."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        before = lines[-1] if lines else ""
        if re.match(r"(?:[-*]|\d+\.) ", line) and not fenced and _is_text(before):
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines) + "\n"


def with_plain_pipes(markdown: str) -> str:
    """Takes the backslash from pipes in the code of tables, where GitHub wants one and Python's Markdown shows it."""

    def plain(row: re.Match[str]) -> str:
        return re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0])

    return re.sub(r"^\|.*$", plain, markdown, flags=re.MULTILINE)


def _is_text(line: str) -> bool:
    """Whether a line belongs to a paragraph, not to a list, a heading or nothing."""
    return bool(line.strip()) and not re.match(r"\s|[-*] |\d+\. |#|\||<", line)


def commands() -> str:
    """The help of every tool."""
    from lit_vlaa.cli import PREDICT, TOOLS  # noqa: PLC0415 - the sources may not be installed where this is imported

    tools = {**TOOLS, "predict MODEL": PREDICT}
    return "\n".join(f"## lit-vlaa {name}\n\n```text\n{helped(name)}\n```\n" for name in tools)


def helped(name: str) -> str:
    """What `lit-vlaa NAME --help` prints."""
    from lit_vlaa.cli import main  # noqa: PLC0415

    page = io.StringIO()
    with (
        contextlib.redirect_stdout(page),
        mock.patch.object(sys, "argv", ["lit-vlaa"]),
        mock.patch.dict(os.environ, {"COLUMNS": _WIDTH, "NO_COLOR": "1"}),
    ):
        if main([*name.split(), "--help"]):
            raise RuntimeError(f"lit-vlaa {name} --help fails")
    return page.getvalue().strip().replace("```", "'''")


def configs() -> str:
    """Every file of `configs/`."""
    return "\n".join(_config(path) for path in config_files())


def config_files() -> list[Path]:
    """The files of `configs/`, those of a folder beside each other."""
    found = [path for path in (ROOT / "configs").rglob("*") if path.suffix in _LANGUAGES]
    return sorted(found, key=lambda path: (path.parent.relative_to(ROOT).parts, path.name))


def _config(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    head, rest = head_comment(path.read_text(encoding="utf-8"))
    return f"## {name}\n\n{_prose(head)}\n\n```{_LANGUAGES[path.suffix]}\n{rest.rstrip()}\n```\n"


def head_comment(text: str) -> tuple[list[str], str]:
    """The lines of the comment that a file begins with, without their `#`, and what follows it."""
    lines = text.splitlines()
    start = int(bool(lines) and lines[0].startswith("#!"))
    end = start
    while end < len(lines) and re.match(r"#(?: |$)", lines[end]):
        end += 1
    return [line[2:] for line in lines[start:end]], "\n".join([*lines[:start], *lines[end:]])


def _prose(comment: list[str]) -> str:
    """A head comment as Markdown: what is indented in it is a command."""
    blocks: list[str] = []
    code = False
    for line in comment:
        indented = line.startswith("  ")
        if indented and code and blocks:
            blocks[-1] = f"{blocks[-1].removesuffix('```')}{line.strip()}\n```"
        elif indented:
            blocks.append(f"```bash\n{line.strip()}\n```")
        elif code or not blocks:
            blocks.append(line)
        else:
            blocks[-1] += f"\n{line}"
        code = indented
    return "\n\n".join(blocks)


def departures() -> str:
    """What modules say of departures from the paper."""
    return "\n".join(f"### {name}\n\n{text}\n" for name, text in departing())


def departing() -> Iterator[tuple[str, str]]:
    """Each module that departs from the paper, and what its docstring says of it."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if found := _DEPARTURE.search(docstring):
                parts = path.relative_to(ROOT).with_suffix("").parts
                yield ".".join(parts).removesuffix(".__init__"), with_lists_apart(docstring[found.start() :]).strip()


_MAKERS: dict[str, Callable[[], str]] = {"commands": commands, "configs": configs, "departures": departures}
