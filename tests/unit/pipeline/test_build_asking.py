"""Rows at work: order, backpressure, the end at a lost endpoint; and what a build's report says."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers.builds import make_config
from lit_vlaa.endpoints.completions import EndpointLostError, RefusedError, UnansweredError
from lit_vlaa.pipeline.asking import in_order
from lit_vlaa.pipeline.config import load
from lit_vlaa.pipeline.interrupts import Interrupts
from lit_vlaa.pipeline.prompt_files import PromptFile
from lit_vlaa.pipeline.report import card, cost_line, split_table, step_report
from lit_vlaa.pipeline.rows import Done, Reject, Row
from lit_vlaa.pipeline.steps import found_right

ROW = Row(
    number=0,
    id="r",
    source="dots",
    kind="digit",
    images=(),
    digests=(),
    question="How many?",
    truth="3",
    context={},
    origin="rows:1",
)


def test_rows_come_out_in_order_and_few_are_begun() -> None:
    begun: list[int] = []
    most = 0

    async def work(row: Row) -> Row | Reject:
        nonlocal most
        begun.append(row.number)
        await asyncio.sleep(0.02 if row.number % 3 == 0 else 0)
        return replace(row, caption=f"c{row.number}")

    async def drain() -> list[str]:
        nonlocal most
        out = []
        rows = (replace(ROW, number=number) for number in range(20))
        async for row, outcome in in_order(rows, work, window=4):
            most = max(most, max(begun) - row.number)
            assert isinstance(outcome, Row)
            out.append(outcome.caption)
        return out

    assert asyncio.run(drain()) == [f"c{number}" for number in range(20)]
    assert most <= 4


def test_failures_of_one_row_are_its_outcome() -> None:
    async def work(row: Row) -> Row | Reject:
        if row.number == 1:
            raise UnansweredError("busy")
        if row.number == 2:
            raise RefusedError("filtered")
        return row

    async def drain() -> list[object]:
        rows = (replace(ROW, number=number) for number in range(4))
        return [outcome async for _, outcome in in_order(rows, work, window=2)]

    first, busy, refused, last = asyncio.run(drain())
    assert isinstance(first, Row)
    assert isinstance(busy, UnansweredError)
    assert refused == Reject("the endpoint refused the request", "filtered")
    assert isinstance(last, Row)


def test_a_lost_endpoint_ends_it_though_the_first_row_is_slow() -> None:
    async def work(row: Row) -> Row | Reject:
        if row.number == 0:
            await asyncio.sleep(600)
        raise EndpointLostError("gone")

    async def drain() -> None:
        rows = (replace(ROW, number=number) for number in range(4))
        async for _ in in_order(rows, work, window=2):
            pass

    with pytest.raises(EndpointLostError, match="gone"):
        asyncio.run(asyncio.wait_for(drain(), 30))


def test_a_signal_as_the_loop_closes_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is another thread's, and may be closed after any look at it."""
    interrupts = Interrupts()

    async def begin() -> None:
        interrupts.future()
        monkeypatch.setattr(asyncio.get_running_loop(), "is_closed", lambda: False)

    asyncio.run(begin())
    interrupts.came(signal.SIGTERM)
    assert interrupts.signum == signal.SIGTERM


def test_rules_find_what_is_right() -> None:
    def answered(number: int, kind: str, truth: str, answer: str, question: str = "q") -> Row:
        values = {"number": number, "kind": kind, "truth": truth, "answer": answer, "question": question}
        return replace(ROW, thinking="t", **values)  # type: ignore[arg-type]

    rows = [
        answered(0, "digit", "3", "3"),
        answered(1, "digit", "3", "4"),
        answered(2, "mcq", "B", "(B)", "A) x\nB) y"),
        answered(3, "math", "1/2", r"\frac{1}{2}"),
        answered(4, "open_ended", "a dog", "a dog"),
        # The upper half of the true box: an overlap of one half.
        answered(5, "iou", "[0.0, 0.0, 1.0, 1.0]", "[0.0, 0.0, 1.0, 0.5]"),
    ]
    assert found_right(rows, min_iou=0.5) == {0, 2, 3, 5}
    assert found_right([rows[5]], min_iou=0.51) == set()


def test_tokens_and_cost_by_step(tmp_path: Path) -> None:
    prices = {"caption__endpoint__price_in": 2.0, "caption__endpoint__price_out": 5.0}
    config = load(make_config(tmp_path, "http://x/v1", **prices))
    prompts = {step: PromptFile(Path(f"{step}.txt"), "ab" * 32, ()) for step in ("caption", "distil")}
    usage = {"replies": 4, "asked": 1, "tokens_in": 300_000, "tokens_out": 20_000, "estimated": 0}
    caption = Done(step="caption", fingerprint="", output_sha256="", rows_in=5, rows_out=4, usage=usage)
    distil = replace(caption, step="distil", usage={**usage, "estimated": 3})
    reports = [step_report(done, config, prompts) for done in (caption, distil)]
    # 0.3 x 2 + 0.02 x 5 = 0.7
    assert [report["cost"] for report in reports] == [pytest.approx(0.7), None]
    assert cost_line(reports) == (
        "8 replies, 600,000 tokens in, 40,000 tokens out, cost 0.70 for the steps with a price "
        "(tokens of 3 replies estimated, as the server did not count them)"
    )
    assert cost_line(reports[:1]) == "4 replies, 300,000 tokens in, 20,000 tokens out, cost 0.70"


def test_the_card_holds_the_table_and_escapes_what_others_wrote() -> None:
    rows = Counter({("dots", "digit", "sft"): 1200, ("dots", "digit", "grpo"): 30, ("dots", "mcq", "grpo"): 4})
    step = {
        "step": "caption",
        "rows_in": 1300,
        "rows_out": 1234,
        "rejected": {"image: <script>alert(1)</script> | [x](http://y)": 66},
        "notes": {},
        "model": "org/m|odel`",
        "sampling": {"temperature": 0.0},
        "prompt": {"file": "caption.txt", "sha256": "0123456789abcdef" * 4},
        "replies": 1234,
        "tokens_in": 5,
        "tokens_out": 6,
        "replies_with_estimated_tokens": 0,
        "cost": 12.5,
    }
    report = {
        "name": "mine",
        "files": {"sft": {"name": "S.json"}, "grpo": {"name": "G.json"}},
        "table": split_table(rows),
        "steps": [step],
        "curation": {"cues": ["wait", "<b>"], "matching": "words", "disjoint_by": ["image"], "moved": 2},
    }
    assert yaml.safe_load(card({**report, "name": "1.0"}).split("---\n")[1])["pretty_name"] == "1.0"
    text = card(report)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["configs"] == [
        {"config_name": "sft", "data_files": "S.json"},
        {"config_name": "grpo", "data_files": "G.json"},
    ]
    assert (front["license"], front["license_name"]) == ("other", "to-be-filled-in")
    lines = text.splitlines()
    assert "| dots | digit | 1,200 | 30 |" in lines
    assert "| dots | mcq | 0 | 4 |" in lines
    assert "| total |  | 1,200 | 34 |" in lines
    assert "| 2 caption | 1,300 | 1,234 | image&#58; &#60;script&#62;" in text
    assert "org/m&#124;odel&#96; | temperature 0.0 | caption.txt, 0123456789abcdef | 1,234 | 5 / 6 | 12.50 |" in text
    assert "2 rows without a cue are in RL for that reason" in text
    assert "The splits share no image: " in text
    assert "<script>" not in text
    assert "<b>" not in text
