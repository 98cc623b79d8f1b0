"""What pages say of the sources is so: quoted messages, generated text."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lit_vlaa.cli import TOOLS

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hooks of the site."""
    spec = importlib.util.spec_from_file_location("docs_pages", DOCS / "hooks" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hyphens_of_a_flag_stay_with_its_name(pages: ModuleType) -> None:
    told = pages.on_page_content("<p>a -- b <code>--model.lr 1 --x-y</code></p>")
    flag = '<span class="flag">--{}</span>'.format
    assert told == f"<p>a -- b <code>{flag('model')}.lr 1 {flag('x')}-y</code></p>"


def strings() -> Iterator[str]:
    """Every text in the sources; what an f-string puts in is left out between its pieces."""
    for package in ("lit_vlaa", "callbacks", "datamodules"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from (
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )


def test_messages_of_the_troubleshooting_page_are_printed_by_the_program() -> None:
    text = re.sub(r"```.*?```", "", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    spans = [span for span in re.findall(r"`([^`]+)`", text) if len(span.split()) >= 3]
    cells = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    quoted = {*cells, *(span for span in spans if not re.match(r"--|lit-vlaa|py-spy|srun", span))}
    assert len(quoted) > 20
    everything = "\n".join(strings())
    assert [message for message in quoted if message not in everything] == []


def test_a_head_comment_becomes_text_and_commands(pages: ModuleType) -> None:
    head, rest = pages.head_comment(
        "# What it is.\n# And more:\n#   lit-vlaa fit\n#   lit-vlaa test\n# End.\na: 1\n# own\n"
    )
    assert head == ["What it is.", "And more:", "  lit-vlaa fit", "  lit-vlaa test", "End."]
    assert rest == "a: 1\n# own"
    assert pages._prose(head) == "What it is.\nAnd more:\n\n```bash\nlit-vlaa fit\nlit-vlaa test\n```\n\nEnd."
    assert pages.head_comment("#!/bin/sh\n# Text.\n#SBATCH --nodes=1\n") == (["Text."], "#!/bin/sh\n#SBATCH --nodes=1")


def test_lists_get_an_empty_line_ahead_of_them(pages: ModuleType) -> None:
    assert pages.with_lists_apart("Text:\n- one\n- two\n  more\n- three") == "Text:\n\n- one\n- two\n  more\n- three\n"
    assert pages.with_lists_apart("Text\n1. one\n2. two") == "Text\n\n1. one\n2. two\n"
    assert pages.with_lists_apart("```\ntext\n- kept\n```") == "```\ntext\n- kept\n```\n"


def test_pipes_in_the_code_of_tables(pages: ModuleType) -> None:
    row = r"| `a\|b` | a\|b |"
    assert pages.with_plain_pipes(f"{row}\n`a\\|b`") == "| `a|b` | a\\|b |\n`a\\|b`"


def test_every_config_and_every_tool_has_its_section(pages: ModuleType) -> None:
    shown = pages.configs()
    for path in (ROOT / "configs").rglob("*"):
        if path.is_file():
            assert f"## {path.relative_to(ROOT).as_posix()}\n" in shown
    commands = pages.commands()
    for tool in [*TOOLS, "predict MODEL"]:
        assert f"## lit-vlaa {tool}\n" in commands
        assert f"usage: lit-vlaa {tool.split()[0]}" in commands


def test_departures_are_found_in_docstrings(pages: ModuleType) -> None:
    found = dict(pages.departing())
    assert {"lit_vlaa.grpo", "lit_vlaa.sft", "lit_vlaa.kl", "lit_vlaa.traces", "datamodules.vlaa_thinking"} <= set(
        found
    )
    assert "lit_vlaa.backbone.tiny" not in found
    assert "Peak learning rate" in found["lit_vlaa.grpo"]


def test_marks_are_replaced(pages: ModuleType) -> None:
    assert "<!-- made" not in pages.on_page_markdown("a\n\n<!-- made: departures -->\n")
    assert pages.on_page_content("<figure><!-- made: picture grpo_step --></figure>").startswith("<figure><svg")
    with pytest.raises(KeyError):
        pages.on_page_markdown("<!-- made: nothing -->")
