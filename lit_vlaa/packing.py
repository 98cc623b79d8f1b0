"""Rows in one packed sequence without padding, a prompt that several rows share only once.

Prompt-sharing is exact: under causal attention a prompt's states do not depend on what follows, so its completions can
all continue the same states, and gradients of all of them add up there. Tokens fall from G (P + C) to P + G C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_vlaa.micro_batches import Batching
from lit_vlaa.segments import Segments
from lit_vlaa.sequences import assemble
from lit_vlaa.types import ImageKey, ModelInputs, Prompt


def pack(
    rows: Sequence[tuple[Prompt, Tensor]], *, share_prompts: bool, device: torch.device | str = "cpu"
) -> ModelInputs:
    """Joins prompts and completions into one packed sequence for one forward pass.

    Args:
        rows: Pairs of a prompt and its `[C]` completion tokens; an empty completion gives a row without targets.
        share_prompts: Whether rows with the same `Prompt` object share its tokens. Its images are encoded once in
            either case.
        device: Where the tensors go.

    Returns:
        The inputs; targets are in the order of the rows.
    """
    packer = _Packer()
    if share_prompts:
        groups: dict[int, list[int]] = {}
        for number, (prompt, _) in enumerate(rows):
            groups.setdefault(id(prompt), []).append(number)
        order = list(groups.values())
    else:
        order = [[number] for number in range(len(rows))]
    predictors: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(rows)
    for members in order:
        places = packer.add(rows[members[0]][0], [rows[number][1] for number in members])
        for number, own in zip(members, places, strict=True):
            predictors[number] = own
    return packer.inputs(torch.cat(predictors), torch.cat([completion for _, completion in rows]), device)


def join(
    rows: Sequence[tuple[Prompt, Tensor]],
    batching: Batching,
    *,
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> ModelInputs:
    """Joins prompts and completions for one forward pass in the layout that `batching` names.

    Args:
        rows: As for `pack`.
        batching: The layout.
        pad_token_id: Fills the ends of padded rows.
        device: Where the tensors go.
    """
    if batching == "padded":
        return assemble(rows, pad_token_id=pad_token_id, device=device)
    return pack(rows, share_prompts=batching == "shared", device=device)


class _Packer:
    """A packed sequence in the making."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._lengths: list[int] = []
        self._continued: list[int] = []
        self._tokens = 0
        self._first_image: dict[int, int] = {}
        self._pixels: list[Tensor] = []
        self._grids: list[Tensor] = []
        self._slots: list[int] = []
        self._keys: list[ImageKey] = []

    def add(self, prompt: Prompt, completions: Sequence[Tensor]) -> list[Tensor]:
        """Appends a prompt and its completions.

        Returns:
            For each completion `[C]` the places of the tokens that predict its own.
        """
        start, length = self._tokens, prompt.input_ids.numel()
        filled = [completion for completion in completions if completion.numel()]
        alone = len(filled) <= 1
        self._append(prompt.input_ids, prompt.position_ids, target=False)
        self._lengths.append(length + (sum(map(len, filled)) if alone else 0))
        self._continued.append(-1)
        self._add_images(prompt)
        trunk = len(self._lengths) - 1
        places = []
        for completion in completions:
            # The prompt's last token predicts the first of every completion.
            own = torch.arange(self._tokens - 1, self._tokens - 1 + len(completion))
            own[:1] = start + length - 1
            places.append(own)
            if not len(completion):
                continue
            positions = (torch.arange(len(completion)) + prompt.next_position).expand(3, -1)
            self._append(completion, positions, target=True)
            if not alone:
                self._lengths.append(len(completion))
                self._continued.append(trunk)
        return places

    def inputs(self, predictors: Tensor, targets: Tensor, device: torch.device | str) -> ModelInputs:
        """What was added, as one sequence."""
        return ModelInputs(
            input_ids=torch.cat(self._ids)[None].to(device, non_blocking=True),
            position_ids=torch.cat(self._positions, dim=1)[:, None].to(device, non_blocking=True),
            target_mask=torch.cat(self._targets)[None].to(device, non_blocking=True),
            predictors=predictors.to(device, non_blocking=True),
            targets=targets.to(device, non_blocking=True),
            pixel_values=torch.cat(self._pixels).to(device) if self._pixels else None,
            image_grid_thw=torch.cat(self._grids).to(device) if self._grids else None,
            image_slots=torch.tensor(self._slots, device=device) if self._slots else None,
            image_keys=tuple(self._keys),
            segments=Segments(tuple(self._lengths), tuple(self._continued)),
        )

    def _append(self, ids: Tensor, positions: Tensor, *, target: bool) -> None:
        self._ids.append(ids)
        self._positions.append(positions)
        self._targets.append(torch.full((len(ids),), target))
        self._tokens += len(ids)

    def _add_images(self, prompt: Prompt) -> None:
        if prompt.pixel_values is None or prompt.image_grid_thw is None:
            return
        count = prompt.image_grid_thw.shape[0]
        if id(prompt) not in self._first_image:
            self._first_image[id(prompt)] = len(self._keys)
            self._pixels.append(prompt.pixel_values)
            self._grids.append(prompt.image_grid_thw)
            self._keys.extend((id(prompt), place) for place in range(count))
        self._slots.extend(self._first_image[id(prompt)] + place for place in range(count))
