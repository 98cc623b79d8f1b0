"""What is timed: an SFT step, or a GRPO step for one kind of completion lengths, by either side."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from benchmarks import ours, theirs
from benchmarks.candidates import Settings, ours_candidates, their_grpo_candidates, their_sft_candidates
from benchmarks.lockstep import Run, Values
from benchmarks.models import Setup
from benchmarks.workload import Kind, lengths, samples
from lit_vlaa.types import Sample

SIDES = ("ours", "trl")


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    setup: Setup
    task: Literal["sft", "grpo"]
    kind: Kind = "heavy"

    @property
    def name(self) -> str:
        """For tables."""
        if self.task == "sft":
            return f"SFT, {self.setup.scale.sft_rows} rows of skewed lengths"
        scale = self.setup.scale
        shape = f"at the limit of {scale.limit}" if self.kind == "fixed" else "of a heavy tail"
        return f"GRPO, {scale.prompts} x {scale.group_size} completions {shape}"

    @property
    def rows(self) -> list[Sample]:
        """Rows of one step."""
        scale = self.setup.scale
        return samples(scale.sft_rows if self.task == "sft" else scale.prompts, scale)

    @cached_property
    def planned(self) -> list[int]:
        """Completion lengths of a rollout, prompt by prompt."""
        scale = self.setup.scale
        return lengths(self.kind, scale.prompts * scale.group_size, scale.limit)

    @cached_property
    def tokens(self) -> int:
        """Valid tokens of a step: of rows in SFT, of completions in GRPO; padding and repeated prompts never count."""
        if self.task == "grpo":
            return sum(self.planned)
        processor = self.setup.processor()
        rows = self.rows
        encoded = [processor.encode(row).input_ids.numel() for row in rows]
        return sum(encoded) + sum(len(processor.encode_response(row.record.response or "")) for row in rows)

    def run(self, side: str, settings: Settings, steps: int) -> Run:
        """A training of one side, `SIDES[0]` or `SIDES[1]`."""
        size: dict[str, Any] = {"steps": steps, "rate": self.setup.scale.learning_rate, "settings": settings}
        if self.task == "sft":
            return (
                ours.sft(self.setup, self.rows, **size) if side == "ours" else theirs.sft(self.setup, self.rows, **size)
            )
        if side == "trl":
            return theirs.grpo(self.setup, self.rows, lengths=self.planned, **size)
        group = self.setup.scale.group_size
        plan = {(str(i // group), i % group): length for i, length in enumerate(self.planned)}
        return ours.grpo(self.setup, self.rows, plan=plan, **size)

    def candidates(self, side: str) -> list[Settings]:
        """What to try for `side`."""
        if side == "ours":
            return ours_candidates(self.task)
        return (their_sft_candidates if self.task == "sft" else their_grpo_candidates)(self.setup)

    def check(self, seen: dict[str, list[Values]], tolerance: float) -> None:
        """Makes sure of the work that was timed.

        Args:
            seen: By side, the values of its steps.
            tolerance: By how much the losses of SFT may differ.

        Raises:
            RuntimeError: If one did other work than was planned.
        """
        if self.task == "grpo":
            for side, steps in seen.items():
                if any(values["lengths"] != self.planned for values in steps):
                    raise RuntimeError(f"{side}: completions are not of the planned lengths")
            return
        for a, b in zip(seen["ours"], seen["trl"], strict=True):
            if abs(float(a["loss"]) - float(b["loss"])) > tolerance:
                raise RuntimeError(f"SFT losses part: {float(a['loss'])} and TRL's {float(b['loss'])}")


def quiet() -> None:
    """Keeps libraries from talking, to the screen and to the network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers", "trl", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
