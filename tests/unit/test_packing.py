"""Packed rows against padded ones: the same scores and gradients, whatever the rows are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.adapted import LORA
from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.packing import pack
from lit_vlaa.sequences import assemble
from lit_vlaa.types import ModelInputs, Prompt, TokenScores

Rows = list[tuple[Prompt, Tensor]]

GROUPS: dict[str, tuple[Sequence[int], ...]] = {
    "one image": ((5, 9, 2), (), (), ()),
    "several images": ((), (5, 9, 2), (), ()),
    "text": ((), (), (7, 7, 1), ()),
    "everything": ((3, 0, 8), (30,), (4, 4, 1, 9, 2), (12, 6)),
    "no completion at all": ((0, 0), (), (0,), (6,)),
    **{f"groups of {size}": ([4 + i for i in range(size)], [3 * i for i in range(size)], (), ()) for size in (1, 2, 8)},
}
"""Completion lengths for prompts with one image, two, none, and a large one."""


def rows_of(backbone: Backbone, groups: Sequence[Sequence[int]]) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return [
        (prompt, torch.randint(10, 500, (length,), generator=generator))
        for prompt, lengths in zip(mixed_prompts(backbone), groups, strict=True)
        for length in lengths
    ]


def scored(backbone: Backbone, inputs: ModelInputs) -> tuple[TokenScores, dict[str, Tensor]]:
    """Scores, and gradients of a sum in which every target has another weight."""
    backbone.zero_grad()
    scores = backbone(inputs, temperature=0.8, ban=True)
    (scores.logprobs * torch.linspace(-1, 2, len(scores.logprobs))).sum().backward()
    return scores, {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}


def assert_same(backbone: Backbone, rows: Rows, *, share: bool, other: Backbone | None = None) -> None:
    """Packed on `backbone` equals padded on `other`, by default the same."""
    scores, gradients = scored(backbone, pack(rows, share_prompts=share))
    expected, expected_gradients = scored(other or backbone, assemble(rows, pad_token_id=0))
    # float32 rounding in other orders of summation; log-probabilities are of the size of 10, and a gradient's rounding
    # goes with the largest of its tensor, whose sums have thousands of terms.
    torch.testing.assert_close(scores.logprobs, expected.logprobs, atol=2e-5, rtol=0)
    torch.testing.assert_close(scores.entropy, expected.entropy, atol=2e-5, rtol=0)
    assert scores.correct.equal(expected.correct)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = float(expected_gradients[name].abs().max())
        torch.testing.assert_close(gradient, expected_gradients[name], atol=2e-5 * scale + 1e-9, rtol=0, msg=name)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_scores_and_gradients_are_those_of_padded_rows(
    backbone: Backbone, groups: Sequence[Sequence[int]], share: bool
) -> None:
    assert_same(backbone, rows_of(backbone, groups), share=share)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "logprob_chunk": 5},
        {"freeze": ("vision",)},
        {"freeze": ("vision", "merger")},
        {"lora": LoRAConfig(**LORA)},  # type: ignore[arg-type]
        {"lora": LoRAConfig(**LORA), "quantize": "nf4"},  # type: ignore[arg-type]
        {"lora": LoRAConfig(**LORA), "gradient_checkpointing": True},  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_the_same_holds_for_every_way_to_train(options: dict[str, Any], share: bool) -> None:
    model = tiny_backbone(**options)
    assert_same(model, rows_of(model, GROUPS["everything"]), share=share)


def test_a_checkpointed_packed_pass_equals_a_plain_padded_one(backbone: Backbone) -> None:
    rows = rows_of(backbone, GROUPS["everything"])
    assert_same(tiny_backbone(gradient_checkpointing=True), rows, share=True, other=backbone)


def test_rows_of_a_prompt_need_not_stand_together(backbone: Backbone) -> None:
    rows = rows_of(backbone, GROUPS["everything"])
    shuffled = [rows[index] for index in (4, 0, 9, 3, 1, 6, 2, 8, 5, 7)]
    assert_same(backbone, shuffled, share=True)


def test_mixed_precision_gives_the_same_up_to_its_own(backbone: Backbone) -> None:
    rows = rows_of(backbone, GROUPS["everything"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shared, padded = (
            scored(backbone, inputs)[0].logprobs
            for inputs in (pack(rows, share_prompts=True), assemble(rows, pad_token_id=0))
        )
    exact = scored(backbone, assemble(rows, pad_token_id=0))[0].logprobs
    assert not padded.equal(exact)
    # Neither is further from float32 than bfloat16 makes it.
    assert (shared - exact).abs().max() < 2 * (padded - exact).abs().max()


def test_a_shared_prompt_stands_once_ahead_of_its_completions(backbone: Backbone) -> None:
    one, two, none, _ = mixed_prompts(backbone)
    completions = [torch.tensor(ids, dtype=torch.long) for ids in ([11, 12], [21], [], [31, 32, 33])]
    inputs = pack(list(zip([one, one, none, two], completions, strict=True)), share_prompts=True)
    p1, p2, p0 = (prompt.input_ids.numel() for prompt in (one, two, none))
    assert inputs.input_ids.tolist() == [
        [*one.input_ids.tolist(), 11, 12, 21, *none.input_ids.tolist(), *two.input_ids.tolist(), 31, 32, 33]
    ]
    assert inputs.segments is not None
    assert inputs.segments.lengths == (p1, 2, 1, p0, p2 + 3)
    assert inputs.segments.continued == (-1, 0, 0, -1, -1)
    assert inputs.targets.tolist() == [11, 12, 21, 31, 32, 33]
    last = p1 + 3 + p0 + p2 - 1
    assert inputs.predictors.tolist() == [p1 - 1, p1, p1 - 1, last, last + 1, last + 2]
    start = one.next_position
    assert inputs.position_ids[:, 0, p1 : p1 + 3].tolist() == [[start, start + 1, start]] * 3
    assert inputs.target_mask.nonzero()[:, 1].tolist() == [p1, p1 + 1, p1 + 2, last + 1, last + 2, last + 3]
    # One image of the first prompt, once; two of the last.
    assert inputs.image_slots is not None
    assert inputs.image_slots.tolist() == [0, 1, 2]
    assert inputs.image_keys == ((id(one), 0), (id(two), 0), (id(two), 1))


def test_the_head_sees_target_rows_alone(backbone: Backbone) -> None:
    """Never those of prompts or of padding, whose logits would take most of the memory."""
    rows = rows_of(backbone, GROUPS["everything"])
    seen: list[int] = []
    handle = backbone.lm_head.register_forward_hook(lambda *call: seen.append(call[-1].shape[0]))
    try:
        layouts = [assemble(rows, pad_token_id=0), *(pack(rows, share_prompts=share) for share in (True, False))]
        for inputs in layouts:
            backbone(inputs)
    finally:
        handle.remove()
    assert seen == [sum(len(completion) for _, completion in rows)] * 3


def test_images_are_encoded_once_whether_the_prompt_is_shared_or_not(backbone: Backbone) -> None:
    rows = rows_of(backbone, ((3, 4), (), (), ()))
    inputs = pack(rows, share_prompts=False)
    assert inputs.image_slots is not None
    assert inputs.image_slots.tolist() == [0, 0]
    assert inputs.image_grid_thw is not None
    assert len(inputs.image_grid_thw) == 1
    assert inputs.input_ids.shape[1] == sum(prompt.input_ids.numel() + len(own) for prompt, own in rows)
