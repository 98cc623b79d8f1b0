"""Steps 2 to 5: what is asked for a row, and what becomes of it by the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lit_vlaa.endpoints.completions import Endpoint
from lit_vlaa.pipeline.config import BuildConfig
from lit_vlaa.pipeline.filters import (
    FINAL,
    REASONING,
    mentions_left,
    read_caption,
    read_rewrite,
    read_trace,
    read_verdict,
    word_change,
)
from lit_vlaa.pipeline.prompt_files import PromptFile
from lit_vlaa.pipeline.rows import Reject, Row
from lit_vlaa.prompts import BOX_INSTRUCTIONS, KIND_INSTRUCTIONS
from lit_vlaa.rewards.scorers.verdict import as_data

Work = Callable[[Row], Awaitable[Row | Reject]]

EXACT_KINDS = frozenset({"digit", "mcq", "math", "iou"})
"""Kinds whose rule can say that an answer is right."""

_NOTHING = "(none)"
_RULE_BATCH = 256


@dataclass(frozen=True, slots=True)
class Asking:
    """All that a step needs to ask for a row."""

    config: BuildConfig
    prompt: PromptFile
    image_root: Path
    endpoint: Endpoint

    async def caption(self, row: Row) -> Row | Reject:
        """Step 2: the image, and what the source tells about it, as text. A row without an image has no caption."""
        if not row.images:
            return row
        from datamodules.images import ImageError  # noqa: PLC0415 (the package takes seconds to import)
        from lit_vlaa.pipeline.pictures import picture  # noqa: PLC0415

        step = self.config.caption
        try:
            pictures = [
                await asyncio.to_thread(
                    picture,
                    self.image_root,
                    image,
                    max_pixels=step.max_pixels,
                    max_image_pixels=self.config.max_image_pixels,
                )
                for image in row.images
            ]
        except ImageError as error:
            return Reject(f"image: {error.reason}", error.detail.replace(str(self.image_root), "image_root"))
        reply = await self.endpoint.ask(self.prompt.fill(caption_values(row)), pictures=pictures)
        found = read_caption(reply, max_words=step.max_words)
        return found if isinstance(found, Reject) else replace(row, caption=found)

    async def distil(self, row: Row) -> Row | Reject:
        """Step 3: a trace and an answer by a model that reads the caption in place of the image."""
        reply = await self.endpoint.ask(self.prompt.fill(distil_values(row)))
        found = read_trace(reply, max_words=self.config.distil.max_words)
        return found if isinstance(found, Reject) else replace(row, thinking=found[0], answer=found[1])

    async def rewrite(self, row: Row) -> Row | Reject:
        """Step 4: the same without a mention of the caption."""
        step = self.config.rewrite
        before = (row.thinking, row.answer)
        messages = self.prompt.fill(rewrite_values(row))
        reply = None
        for attempt in range(step.tries):
            reply = await self.endpoint.ask(messages, attempt=attempt)
            after = read_rewrite(reply)
            if after is not None:
                break
        else:
            return Reject("the rewriter's reply cannot be read", reply.text if reply else "")
        change = word_change(before, after)
        if change > step.max_word_change:
            return Reject("the length changed too much", f"{change} words > {step.max_word_change}")
        if left := mentions_left(after, step.mentions, row.question):
            return Reject("mentions of the caption are left", ", ".join(left))
        return replace(row, thinking=after[0], answer=after[1])

    async def verify(self, row: Row) -> Row | Reject:
        """Step 5: the answer beside the truth. A row that a rule has found right already is not asked about."""
        if row.verified_by:
            return row
        messages = self.prompt.fill(verify_values(row))
        reply = None
        for attempt in range(self.config.verify.tries):
            reply = await self.endpoint.ask(messages, attempt=attempt)
            verdict = read_verdict(reply)
            if verdict is not None:
                return replace(row, verified_by="model") if verdict else Reject("the verifier says No", row.answer)
        return Reject("the verifier says neither Yes nor No", reply.text if reply else "")


def caption_values(row: Row) -> dict[str, str]:
    """What step 2 puts into its prompt."""
    return {"context": _context(row)}


def distil_values(row: Row) -> dict[str, str]:
    """What step 3 puts into its prompt."""
    boxed = row.kind == "iou"
    instruction = BOX_INSTRUCTIONS["normalized"] if boxed else KIND_INSTRUCTIONS.get(row.kind, "")
    return {
        "caption": row.caption or _NOTHING,
        "context": _context(row),
        "question": row.question,
        "instruction": instruction,
    }


def rewrite_values(row: Row) -> dict[str, str]:
    """What step 4 puts into its prompt."""
    return {
        "question": row.question,
        "reasoning": f"{REASONING[0]}\n{row.thinking}\n{REASONING[1]}",
        "final": f"{FINAL[0]}\n{row.answer}\n{FINAL[1]}",
    }


def verify_values(row: Row) -> dict[str, str]:
    """What step 5 puts into its prompt: one line of JSON, in which nothing can pose as an instruction's end."""
    return {"data": as_data({"question": row.question, "reference": row.truth, "answer": row.answer})}


def _context(row: Row) -> str:
    return "\n".join(f"{name}: {text}" for name, text in row.context.items()) or _NOTHING


def found_right(rows: Iterable[Row], *, min_iou: float) -> set[int]:
    """Numbers of the rows whose answer the rule of their kind finds right.

    Args:
        rows: With answers.
        min_iou: Overlap from which a box is right.
    """
    from lit_vlaa.rewards.mixed import MixedReward  # noqa: PLC0415 (takes seconds to import)
    from lit_vlaa.types import RewardRequest  # noqa: PLC0415

    reward = MixedReward()
    right: set[int] = set()
    try:
        exact = (row for row in rows if row.kind in EXACT_KINDS)
        while batch := list(islice(exact, _RULE_BATCH)):
            requests = [
                RewardRequest(row.response, row.kind, row.truth, row.question, row.source, id=row.id) for row in batch
            ]
            for row, result in zip(batch, reward(requests), strict=True):
                enough = min_iou if row.kind == "iou" else 1.0
                if result.status == "ok" and result.value >= enough:
                    right.add(row.number)
    finally:
        reward.close()
    return right
