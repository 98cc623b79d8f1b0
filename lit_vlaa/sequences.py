"""From ragged token sequences to padded rows and back: rotary positions, row assembly, micro-batches.

Rows are padded on the right. Under causal attention no real token can look at such padding, so a forward pass needs no
attention mask, which keeps the fastest attention kernels available.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_vlaa.types import ImageKey, ModelInputs, Prompt


def mrope_positions(
    input_ids: Tensor, *, image_token_id: int, image_grid_thw: Tensor | None, merge_size: int
) -> Tensor:
    """Multimodal rotary positions of one sequence (Qwen2-VL report, section 2.1).

    Text tokens advance all three coordinates by one. The tokens of an image share a start and spread over (time, row,
    column); the text after it goes on from the largest coordinate used.

    Args:
        input_ids: `[P]` with image placeholders expanded.
        image_token_id: The placeholder's id.
        image_grid_thw: `[I, 3]` patch grids in the order of the images.
        merge_size: Patches merged along each side into one token.

    Returns:
        `[3, P]` int64.

    Raises:
        ValueError: If the placeholders do not match the grids.
    """
    is_image = (input_ids == image_token_id).tolist()
    grids = [] if image_grid_thw is None else image_grid_thw.tolist()
    pieces: list[Tensor] = []
    index = position = image = 0
    while index < len(is_image):
        if not is_image[index]:
            end = index
            while end < len(is_image) and not is_image[end]:
                end += 1
            pieces.append(torch.arange(position, position + end - index).expand(3, -1))
            position += end - index
            index = end
            continue
        if image == len(grids):
            raise ValueError(f"the sequence has more image tokens than its {len(grids)} image(s) account for")
        time, height, width = grids[image][0], grids[image][1] // merge_size, grids[image][2] // merge_size
        count = time * height * width
        if index + count > len(is_image) or not all(is_image[index : index + count]):
            raise ValueError(f"image {image} needs {count} consecutive image tokens")
        axes = torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
        pieces.append(torch.stack(axes).reshape(3, -1) + position)
        position += max(height, width)
        index += count
        image += 1
    if image != len(grids):
        raise ValueError(f"the sequence holds {image} image(s), {len(grids)} were given")
    return torch.cat(pieces, dim=1) if pieces else torch.zeros(3, 0, dtype=torch.long)


def assemble(
    rows: Sequence[tuple[Prompt, Tensor]], *, pad_token_id: int, device: torch.device | str = "cpu"
) -> ModelInputs:
    """Joins prompts and completions into right-padded rows for one forward pass.

    Rows that share a `Prompt` object share its images: they are encoded once and placed in every such row.

    Args:
        rows: Pairs of a prompt and its `[C]` completion tokens; an empty completion gives a row without targets.
        pad_token_id: Fills the rows' ends.
        device: Where the tensors go.

    Returns:
        The inputs, with `target_mask` true exactly at the completion tokens.
    """
    lengths = [prompt.input_ids.numel() + completion.numel() for prompt, completion in rows]
    width = max(lengths)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    position_ids = torch.zeros(3, len(rows), width, dtype=torch.long)
    target_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    predictors: list[Tensor] = []
    pixels: list[Tensor] = []
    grids: list[Tensor] = []
    first_image: dict[int, int] = {}
    slots: list[int] = []
    keys: list[ImageKey] = []
    images = 0
    for row, ((prompt, completion), length) in enumerate(zip(rows, lengths, strict=True)):
        start = prompt.input_ids.numel()
        input_ids[row, :start] = prompt.input_ids
        input_ids[row, start:length] = completion
        position_ids[:, row, :start] = prompt.position_ids
        position_ids[:, row, start:] = torch.arange(width - start) + prompt.next_position
        target_mask[row, start:length] = True
        predictors.append(torch.arange(start - 1, length - 1) + row * width)
        if prompt.pixel_values is None or prompt.image_grid_thw is None:
            continue
        if id(prompt) not in first_image:
            first_image[id(prompt)] = images
            pixels.append(prompt.pixel_values)
            grids.append(prompt.image_grid_thw)
            images += prompt.image_grid_thw.shape[0]
            keys.extend((id(prompt), place) for place in range(prompt.image_grid_thw.shape[0]))
        slots.extend(first_image[id(prompt)] + offset for offset in range(prompt.image_grid_thw.shape[0]))
    return ModelInputs(
        input_ids=input_ids.to(device, non_blocking=True),
        position_ids=position_ids.to(device, non_blocking=True),
        target_mask=target_mask.to(device, non_blocking=True),
        predictors=torch.cat(predictors).to(device, non_blocking=True),
        targets=torch.cat([completion for _, completion in rows]).to(device, non_blocking=True),
        pixel_values=torch.cat(pixels).to(device) if pixels else None,
        image_grid_thw=torch.cat(grids).to(device) if grids else None,
        image_slots=torch.tensor(slots, device=device) if slots else None,
        image_keys=tuple(keys),
    )


def micro_batch_count(lengths: Sequence[int], max_tokens: int) -> int:
    """How many contiguous micro-batches keep each at `max_tokens` padded tokens (a single longer row stands alone).

    Args:
        lengths: Tokens of each row, in the order in which the rows will be split.
        max_tokens: Budget of one micro-batch, rows times the longest row, padding included.
    """
    return len(_split(lengths, max_tokens))


def split_contiguous(lengths: Sequence[int], count: int) -> list[range]:
    """Splits rows into exactly `count` contiguous, non-empty micro-batches with the smallest possible largest one.

    Every rank must run the same number of forward passes under FSDP2, so the number is agreed on first and the rows
    are then spread over it.

    Raises:
        ValueError: If there are fewer rows than micro-batches.
    """
    if not 1 <= count <= len(lengths):
        raise ValueError(f"cannot split {len(lengths)} row(s) into {count} micro-batch(es)")
    low, high = max(lengths), max(lengths) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_split(lengths, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    longest_first = [(-len(part), part.start, part.stop) for part in _split(lengths, low)]
    heapq.heapify(longest_first)
    while len(longest_first) < count:
        _, start, stop = heapq.heappop(longest_first)
        middle = (start + stop) // 2
        for begin, end in ((start, middle), (middle, stop)):
            heapq.heappush(longest_first, (begin - end, begin, end))
    return sorted((range(start, stop) for _, start, stop in longest_first), key=lambda part: part.start)


def _split(lengths: Sequence[int], max_tokens: int) -> list[range]:
    parts: list[range] = []
    start = longest = 0
    for row, length in enumerate(lengths):
        longest_with = max(longest, length)
        if row > start and longest_with * (row - start + 1) > max_tokens:
            parts.append(range(start, row))
            start, longest_with = row, length
        longest = longest_with
    parts.append(range(start, len(lengths)))
    return parts


def unflatten(values: Tensor, mask: Tensor) -> Tensor:
    """Puts `[N]` token values back at the true places of a `[B, T]` mask, zeros elsewhere. Keeps gradients."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
