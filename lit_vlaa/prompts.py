"""From a record to chat messages; the one place that knows the tags, the system prompt and the instructions.

Departure from the paper (section on SFT): it adds task-specific instructions and asks for the tags in a system prompt,
but does not print every one of them, so the wording here is ours. Training and evaluation use it alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from lit_vlaa.types import BoxSpace, ImagePart, Kind, Message, Record, TextPart

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

IMAGE_PLACEHOLDER = "<image>"
"""Mark that some files leave in the question text; the image parts of the message stand for it."""

DEFAULT_SYSTEM_PROMPT = (
    f"Think step by step inside {THINK_OPEN} {THINK_CLOSE}, "
    f"then give only the final answer inside {ANSWER_OPEN} {ANSWER_CLOSE}."
)

KIND_INSTRUCTIONS: Mapping[Kind, str] = MappingProxyType(
    {
        "digit": "Answer with a number.",
        "mcq": "Answer with the letter of the right option.",
        "math": "Answer with a mathematical expression or value.",
        "iou": "Answer with one box.",
        "open_ended": "Answer with a short phrase.",
    }
)
"""Appended to the question unless `PromptConfig.instructions` says otherwise; for boxes see `BOX_INSTRUCTIONS`."""

BOX_INSTRUCTIONS: Mapping[BoxSpace, str] = MappingProxyType(
    {
        "normalized": "Answer with one box [x1, y1, x2, y2], each number a fraction of the image from 0 to 1.",
        "qwen2_5_vl": "Answer with one box [x1, y1, x2, y2] in pixels of the image.",
        "qwen2_vl": "Answer with one box (x1,y1),(x2,y2), each number from 0 to 1000.",
    }
)
"""How each box space is asked for."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What is said to the model around the question.

    Attributes:
        system_prompt: First turn of every chat; empty for none.
        instructions: Line after the question, by source (`docvqa`) or by kind (`mcq`), source first; an empty text for
            no line. What is not named keeps its default.
        box_space: How the model is asked to write boxes and how they are read: `normalized` (fractions of the image, as
            in the data's own responses), `qwen2_5_vl` (pixels of the image as fed), `qwen2_vl` (thousandths), or `auto`
            for what the backbone was pretrained to write. Take the same in SFT and in the GRPO that follows it.
    """

    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    instructions: dict[str, str] = field(default_factory=dict)
    box_space: BoxSpace | Literal["auto"] = "normalized"

    def resolve_box_space(self, native: BoxSpace) -> BoxSpace:
        """The space to use with a backbone that was pretrained to write boxes in `native`."""
        return native if self.box_space == "auto" else self.box_space


def instruction_for(record: Record, config: PromptConfig, box_space: BoxSpace) -> str:
    """Returns the line to append to `record`'s question; empty for none, as for kinds of the user's own."""
    default = BOX_INSTRUCTIONS[box_space] if record.kind == "iou" else KIND_INSTRUCTIONS.get(record.kind, "")
    return config.instructions.get(record.source, config.instructions.get(record.kind, default))


def build_messages(record: Record, config: PromptConfig, *, box_space: BoxSpace = "normalized") -> tuple[Message, ...]:
    """Writes the chat that asks `record`'s question.

    Args:
        record: The row to ask.
        config: System prompt and instructions.
        box_space: How boxes are asked for (`config.resolve_box_space`).

    Returns:
        The system turn (when there is one) and the user turn: one image part for each image, then the question with its
        instruction on a line of its own.
    """
    question = record.question.replace(IMAGE_PLACEHOLDER, "").strip()
    instruction = instruction_for(record, config, box_space)
    text = f"{question}\n{instruction}" if instruction else question
    parts: list[TextPart | ImagePart] = [{"type": "image"} for _ in record.images]
    parts.append({"type": "text", "text": text})
    user: Message = {"role": "user", "content": parts}
    if not config.system_prompt:
        return (user,)
    return ({"role": "system", "content": [{"type": "text", "text": config.system_prompt}]}, user)


def format_response(thinking: str, answer: str) -> str:
    """Joins a trace and an answer into a response of the trained form."""
    return f"{THINK_OPEN}{thinking}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


def to_response(text: str) -> str | None:
    """Brings a distilled answer into the trained form.

    Args:
        text: `<think>...</think><answer>...</answer>`, a reasoning model's `<think>...</think>` followed by prose, or
            `<answer>...</answer>` alone, a direct answer.

    Returns:
        A response with at most one thinking block and after it one answer block, neither of them empty; None when
        `text` cannot be read as one.
    """
    text = text.strip()
    if _is_answer_block(text):
        return text
    if not text.startswith(THINK_OPEN) or text.count(THINK_OPEN) != 1 or text.count(THINK_CLOSE) != 1:
        return None
    thinking, rest = text.removeprefix(THINK_OPEN).split(THINK_CLOSE)
    rest = rest.strip()
    if not thinking.strip() or not rest or ANSWER_OPEN in thinking or ANSWER_CLOSE in thinking:
        return None
    if ANSWER_OPEN not in rest and ANSWER_CLOSE not in rest:
        return format_response(thinking.strip(), rest)
    before, opened, _ = rest.partition(ANSWER_OPEN)
    return text if opened and _is_answer_block(rest.removeprefix(before)) else None


def _is_answer_block(text: str) -> bool:
    """Whether it is one answer between its tags, not empty, and no other tag."""
    inner = text.strip().removeprefix(ANSWER_OPEN).removesuffix(ANSWER_CLOSE)
    tags = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
    whole = f"{ANSWER_OPEN}{inner}{ANSWER_CLOSE}" == text.strip()
    return whole and bool(inner.strip()) and not any(tag in inner for tag in tags)
