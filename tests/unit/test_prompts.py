from __future__ import annotations

import dataclasses

import pytest

from lit_vlaa.prompts import (
    BOX_INSTRUCTIONS,
    DEFAULT_SYSTEM_PROMPT,
    KIND_INSTRUCTIONS,
    PromptConfig,
    build_messages,
    to_response,
)
from lit_vlaa.types import KINDS, BoxSpace, Kind, Record


def record(kind: Kind = "digit", source: str = "clevr_math", question: str = "How many?", images: int = 1) -> Record:
    return Record(
        id="1",
        source=source,
        kind=kind,
        images=tuple(f"{source}/{n}.png" for n in range(images)),
        question=question,
        truth="1",
        response=None,
        origin="f:1",
    )


def user_text(row: Record, config: PromptConfig) -> str:
    part = build_messages(row, config)[-1]["content"][-1]
    assert part["type"] == "text"
    return part["text"]


def test_a_chat_is_system_then_images_then_question_with_its_instruction() -> None:
    messages = build_messages(record(images=2), PromptConfig())
    assert messages == (
        {"role": "system", "content": [{"type": "text", "text": DEFAULT_SYSTEM_PROMPT}]},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "image"},
                {"type": "text", "text": "How many?\nAnswer with a number."},
            ],
        },
    )


def test_default_system_prompt_names_all_four_tags() -> None:
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in DEFAULT_SYSTEM_PROMPT


def test_no_system_prompt_no_system_turn() -> None:
    assert [m["role"] for m in build_messages(record(), PromptConfig(system_prompt=""))] == ["user"]


@pytest.mark.parametrize("question", ["<image>\nHow many?", "How many?\n<image>", "<image>How many?<image>"])
def test_image_placeholders_in_the_question_are_dropped(question: str) -> None:
    assert user_text(record(question=question), PromptConfig()) == "How many?\nAnswer with a number."


def test_every_kind_has_an_instruction() -> None:
    assert set(KIND_INSTRUCTIONS) == set(KINDS)


@pytest.mark.parametrize(
    ("space", "words"), [("normalized", "fraction"), ("qwen2_5_vl", "pixels"), ("qwen2_vl", "1000")]
)
def test_boxes_are_asked_for_in_the_box_space(space: BoxSpace, words: str) -> None:
    (_, user) = build_messages(record("iou", "coco"), PromptConfig(), box_space=space)
    text = str(user["content"][-1].get("text"))
    assert words in text.splitlines()[-1]
    assert len(set(BOX_INSTRUCTIONS.values())) == 3


def test_auto_takes_what_the_backbone_writes() -> None:
    assert PromptConfig(box_space="auto").resolve_box_space("qwen2_5_vl") == "qwen2_5_vl"
    assert PromptConfig(box_space="qwen2_vl").resolve_box_space("qwen2_5_vl") == "qwen2_vl"
    assert PromptConfig().resolve_box_space("qwen2_5_vl") == "normalized"


def test_a_kind_of_ones_own_has_no_instruction_unless_given() -> None:
    assert user_text(record("words"), PromptConfig()) == "How many?"
    assert user_text(record("words"), PromptConfig(instructions={"words": "In words."})) == "How many?\nIn words."


def test_an_instruction_by_source_wins_over_one_by_kind_and_that_over_the_default() -> None:
    config = PromptConfig(instructions={"docvqa": "By source.", "open_ended": "By kind.", "digit": ""})
    assert user_text(record("open_ended", "docvqa"), config) == "How many?\nBy source."
    assert user_text(record("open_ended", "vizwiz"), config) == "How many?\nBy kind."
    assert user_text(record("digit"), config) == "How many?"
    assert user_text(record("mcq", "arxivqa"), config).endswith("letter of the right option.")


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PromptConfig().system_prompt = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("<think>a</think><answer>b</answer>", "<think>a</think><answer>b</answer>"),
        ("  <think> a </think>\n\n<answer> b </answer>\n", "<think> a </think>\n\n<answer> b </answer>"),
        ("<think>\na\n</think>\n\nb **c** \n", "<think>a</think><answer>b **c**</answer>"),
        ("<think>a</think>so <answer>b</answer>", "<think>a</think>so <answer>b</answer>"),
        ("b", None),
        ("<answer>b</answer>", "<answer>b</answer>"),
        (" <answer> b </answer>\n", "<answer> b </answer>"),
        ("<answer></answer>", None),
        ("<answer>", None),
        ("<answer>b</answer><answer>c</answer>", None),
        ("<answer><think>a</think>b</answer>", None),
        ("<answer>b</answer> and more", None),
        ("<think>a</think>", None),
        ("<think>a</think>   ", None),
        ("<think></think>b", None),
        ("<think>a<answer>b</answer></think>c", None),
        ("<think>a</think><answer></answer>", None),
        ("<think>a</think><answer>b", None),
        ("<think>a</think>b</answer>", None),
        ("<think>a</think></answer>b<answer>", None),
        ("<think>a</think><answer>b</answer><answer>c</answer>", None),
        ("<think>a</think><answer>b</answer> and more", None),
        ("<think>a</think><think>b</think><answer>c</answer>", None),
        ("so <think>a</think><answer>b</answer>", None),
        ("", None),
    ],
)
def test_distilled_answers_come_to_one_form_or_none(text: str, response: str | None) -> None:
    assert to_response(text) == response
