"""The splits of a build: cues, disjointness, the released forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.records import normalise
from lit_vlaa.pipeline.config import CurateConfig
from lit_vlaa.pipeline.curate import grpo_line, keys, place, sft_line, short_count, split_paths
from lit_vlaa.pipeline.rows import Row


def row(number: int = 0, *, image: str = "a", question: str = "q", thinking: str = "I see", **more: object) -> Row:
    values = {
        "number": number,
        "id": f"r{number}",
        "source": "dots",
        "kind": "digit",
        "images": (f"{image}.png",) if image else (),
        "digests": (image,) if image else (),
        "question": question,
        "truth": "3",
        "context": {"text question": "Given 3."},
        "origin": f"rows:{number + 1}",
        "caption": "Dots.",
        "thinking": thinking,
        "answer": "3",
        **more,
    }
    return Row(**values)  # type: ignore[arg-type]


def splits(rows: list[Row], **options: object) -> str:
    return "".join(placing.split[0] for placing in place(rows, CurateConfig(**options)))  # type: ignore[arg-type]


def test_cues_go_to_rl_and_what_shares_with_them_too() -> None:
    apart = {"image": "b", "question": "p"}
    assert splits([row(0, thinking="Wait"), row(1, **apart)]) == "gs"
    assert splits([row(0, thinking="Wait"), row(1, question="p")]) == "gg"
    assert splits([row(0, thinking="Wait"), row(1, image="b", question=" Q ")]) == "gg"
    assert splits([row(0, thinking="Wait"), row(1, image="b")], disjoint_by=["image"]) == "gs"
    assert splits([row(0, thinking="Wait"), row(1, question="p")], disjoint_by=["question"]) == "gs"
    assert splits([row(0, thinking="Wait"), row(1)], disjoint_by=[]) == "gs"


def test_third_rows_tie_groups_together() -> None:
    rows = [row(0, image="a", question="p"), row(1, image="b", question="q", thinking="hmm"), row(2, image="a")]
    assert splits(rows) == "ggg"
    assert splits(rows[:2]) == "sg"
    moved = [placing.moved for placing in place(rows, CurateConfig())]
    assert moved == [True, False, True]


@pytest.mark.parametrize(("matching", "expected"), [("substring", "g"), ("words", "s")])
def test_cues_as_substrings_or_words(matching: str, expected: str) -> None:
    assert splits([row(thinking="against the wall")], matching=matching) == expected


def test_own_cues_and_cues_in_the_answer() -> None:
    assert splits([row(thinking="aber nein")], cues=["nein"]) == "g"
    assert splits([row(answer="check 3")]) == "g"


ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("pqrstu"), st.booleans()), min_size=1, max_size=14)


@given(ROWS, st.sampled_from([["image"], ["question"], ["image", "question"]]))
@settings(max_examples=200)
def test_splits_share_nothing_and_sft_has_no_cue(drawn: list[tuple[str, str, bool]], by: list[str]) -> None:
    rows = [
        row(number, image=image, question=question, thinking="Wait" if aha else "I see")
        for number, (image, question, aha) in enumerate(drawn)
    ]
    config = CurateConfig(disjoint_by=by)  # type: ignore[arg-type]
    placings = place(rows, config)
    shown: dict[str, set[str]] = {"sft": set(), "grpo": set()}
    for one, placing in zip(rows, placings, strict=True):
        shown[placing.split] |= set(keys(one, config))
        assert placing.split == "grpo" or not placing.cues
    assert not shown["sft"] & shown["grpo"]
    # No more is moved than must be: what RL holds is reached from a row with a cue by shared keys.
    reached = {key for one, placing in zip(rows, placings, strict=True) if placing.cues for key in keys(one, config)}
    while more := {
        key for one in rows if set(keys(one, config)) & reached for key in keys(one, config) if key not in reached
    }:
        reached |= more
    for one, placing in zip(rows, placings, strict=True):
        assert (placing.split == "grpo") == bool(set(keys(one, config)) & reached)


def test_lines_are_read_as_records() -> None:
    models = {"caption": "c", "distil": "d"}
    for images in ((), ("a.png",), ("a.png", "b/c.png")):
        given_row = row(images=images, digests=images)
        sft = normalise(json.loads(json.dumps(sft_line(given_row))), file="f", number=1, split="sft")
        grpo = normalise(json.loads(json.dumps(grpo_line(given_row, models))), file="f", number=1, split="grpo")
        for record in (sft, grpo):
            assert (record.id, record.kind, record.images, record.question) == ("r0", "digit", images, "q")
            assert record.truth == "3"
        assert sft.response == "<think>I see</think><answer>3</answer>"
        assert grpo_line(given_row, models)["meta"] == {
            "text_question": "Given 3.",
            "caption_model_id": "c",
            "reasoning_model_id": "d",
            "ds_answer": "<think>I see</think><answer>3</answer>",
        }


def test_names_of_the_files() -> None:
    assert [short_count(count) for count in (0, 999, 1000, 25195, 126413)] == ["0", "999", "1K", "25K", "126K"]
    paths = split_paths(Path("o"), {"sft": 126413, "grpo": 12})
    assert [path.name for path in paths.values()] == ["VLAA-Thinking-SFT-126K.json", "VLAA-Thinking-GRPO-12.json"]
