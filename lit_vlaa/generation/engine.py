"""The rollout engine: each prompt read once, its completions decoded side by side, freed places filled from a queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_vlaa.backbone.model import Backbone
from lit_vlaa.generation.cache import PROMPT_TOKENS_AT_ONCE, Capacity, Slots, capacity, capacity_within
from lit_vlaa.generation.decoder import Extent, decode_step, read_prompts
from lit_vlaa.generation.graphs import StepGraphs, rounded
from lit_vlaa.generation.protocol import OnGroup, RolloutKey
from lit_vlaa.generation.sampling import sample_tokens, uniforms
from lit_vlaa.generation.scheduler import Admitted, Row, Scheduler
from lit_vlaa.generation.weights import DecoderWeights, decoder_weights
from lit_vlaa.sequences import assemble, micro_batch_count, split_contiguous
from lit_vlaa.types import Completion, Prompt, SamplingParams

_REFILL_SHARE = 0.125
"""Freed slots are filled once they are this share of all: prompts are read faster together."""

_KEEP_SHARE = 0.8
"""With an empty queue, rows are moved together when fewer than this share of those computed go on."""

_LOOK_EVERY = 8
"""Steps between looks at which rows ended, on devices where a look waits for all queued work."""

_log = logging.getLogger(__name__)


class CachedGenerator:
    """Continuous batching over a key-value cache, with the policy's own weights (implements `Generator`)."""

    def __init__(
        self,
        *,
        max_rows: int = 256,
        memory_gb: float | None = None,
        cuda_graphs: bool = True,
        merge_adapters: bool = False,
        dequantize: bool = False,
    ) -> None:
        """Sets what a rollout may take.

        Args:
            max_rows: Most completions decoded at one time; the others wait for one to end. Memory grows with it.
            memory_gb: GiB for keys and values; so many of `max_rows` are decoded at one time as fit into it. Null for
                no such limit.
            cuda_graphs: Replay decoding steps on a GPU as CUDA graphs, which takes the launching of kernels off the
                CPU.
            merge_adapters: Add adapters to copies of their weights for the length of a rollout, which takes the
                memory of these weights once more (in mixed precision there is a copy anyway). Exact in float32; half
                precision rounds off what is below 1/256 of a weight, and with it much of a young adapter.
            dequantize: Dequantise weights of 4 bits once a rollout instead of at every step, which takes the memory
                of the dense language model for its length. Changes no number.

        Raises:
            ValueError: If a limit is not positive.
        """
        if max_rows < 1:
            raise ValueError(f"--model.generator.max_rows must be at least 1, got {max_rows}")
        if memory_gb is not None and not memory_gb > 0:
            raise ValueError(f"--model.generator.memory_gb must be positive, got {memory_gb}")
        self.max_rows = max_rows
        self.memory_gb = memory_gb
        self.cuda_graphs = cuda_graphs
        self.merge_adapters = merge_adapters
        self.dequantize = dequantize
        self._graphs = StepGraphs()

    @torch.no_grad()
    def generate(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        params: SamplingParams,
        key: RolloutKey,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        """Samples `group_size` completions for each prompt (see `Generator`)."""
        if not prompts:
            return []
        merge, dequantize = self.merge_adapters, self.dequantize
        weights = decoder_weights(backbone.language_model, merge_adapters=merge, dequantize=dequantize)
        longest = max(prompt.input_ids.numel() for prompt in prompts)
        slots = Slots.empty(
            self._capacity(weights, len(prompts), group_size, longest, params.max_new_tokens),
            weights,
            group_size=group_size,
            prompt_tokens=longest,
            new_tokens=params.max_new_tokens,
        )
        graphs = self._graphs if self._may_capture(weights, slots) else None
        return _Rollout(
            backbone, weights, slots, graphs, prompts=prompts, group_size=group_size, params=params, key=key
        ).run(on_group)

    def _capacity(
        self, weights: DecoderWeights, prompts: int, group_size: int, prompt_tokens: int, new_tokens: int
    ) -> Capacity:
        if self.memory_gb is None:
            return capacity(prompts, group_size, self.max_rows)
        return capacity_within(
            int(self.memory_gb * 2**30),
            prompts=prompts,
            group_size=group_size,
            max_rows=self.max_rows,
            token_bytes=2 * len(weights.layers) * weights.key_value_heads * weights.head_size * weights.dtype.itemsize,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        )

    def _may_capture(self, weights: DecoderWeights, slots: Slots) -> bool:
        if not self.cuda_graphs or slots.token.device.type != "cuda":
            return False
        if weights.packed:
            if not self._graphs.failed:
                _log.info("no CUDA graphs: weights of 4 bits are dequantised at every step; see dequantize")
            self._graphs.failed = True
            return False
        self._graphs.begin(weights, slots)
        return not self._graphs.failed


class _Rollout:
    """One call of the engine."""

    def __init__(
        self,
        backbone: Backbone,
        weights: DecoderWeights,
        slots: Slots,
        graphs: StepGraphs | None,
        *,
        prompts: Sequence[Prompt],
        group_size: int,
        params: SamplingParams,
        key: RolloutKey,
    ) -> None:
        self.backbone, self.weights, self.slots, self.graphs = backbone, weights, slots, graphs
        self.prompts, self.group_size, self.params, self.key = prompts, group_size, params, key
        self.device = slots.token.device
        self.sizes = [prompt.input_ids.numel() for prompt in prompts]
        # Longest first: neighbours are alike, so that little padding is read, and what is read only shrinks.
        order = sorted(range(len(prompts)), key=lambda index: -self.sizes[index])
        rows, held = slots.token.shape[0], slots.prompt_bias.shape[0]
        self.scheduler = Scheduler(order, group_size, Capacity(rows, held))
        self.stops = torch.tensor(backbone.processor.stop_token_ids, device=self.device)
        self.ended: list[dict[int, Completion]] = [{} for _ in prompts]
        self.groups: list[list[Completion]] = [[] for _ in prompts]
        self.members = group_size
        self.rows = self.held = 0
        """Row and prompt slots up to the last one that was in use when rows last came or moved."""
        self.steps = 0

    def run(self, on_group: OnGroup | None) -> list[list[Completion]]:
        """Everything; gives the completions by prompt and sample, and `on_group` those of a prompt once it is done."""
        scheduler = self.scheduler
        self._admit()
        while scheduler.live:
            self._draw(self.rows)
            self.steps += 1
            if (
                self.steps % _look_every(self.device) == 0
                or scheduler.longest(self.steps) >= self.params.max_new_tokens
            ):
                self._harvest(on_group)
            if scheduler.live:
                self._decode()
            self._rearrange()
        return self.groups

    def _rearrange(self) -> None:
        """Fills freed slots, or moves the rows together, where that pays."""
        scheduler = self.scheduler
        if scheduler.queue:
            if scheduler.free >= _REFILL_SHARE * scheduler.size.rows or not scheduler.live:
                self._admit()
        elif 0 < scheduler.live < _KEEP_SHARE * self.rows:
            row_moves, prompt_moves = scheduler.compact()
            self.slots.move_rows(row_moves, scheduler.longest(self.steps))
            self.slots.move_prompts(prompt_moves)
            self._seat()

    def _admit(self) -> None:
        admitted = self.scheduler.admit(self.steps)
        if not admitted.rows:
            return
        self._read(admitted.prompts)
        self._start(admitted)
        self._seat()

    def _read(self, admitted: list[tuple[int, int]]) -> None:
        """Reads new prompts, a bounded number of tokens at a time."""
        if not admitted:
            return
        lengths = [self.sizes[prompt] for prompt, _ in admitted]
        empty = torch.empty(0, dtype=torch.long)
        for part in split_contiguous(lengths, micro_batch_count(lengths, PROMPT_TOKENS_AT_ONCE)):
            chosen = [admitted[index] for index in part]
            rows = [(self.prompts[prompt], empty) for prompt, _ in chosen]
            inputs = assemble(rows, pad_token_id=self.backbone.processor.pad_token_id, device=self.device)
            read_prompts(
                self.weights,
                self.slots,
                self.backbone.embed(inputs),
                positions=inputs.position_ids,
                lengths=self._tensor([self.sizes[prompt] for prompt, _ in chosen]),
                where=self._tensor([slot for _, slot in chosen]),
            )

    def _start(self, admitted: Admitted) -> None:
        """Sets new rows to the end of their prompts."""
        slots, limit = self.slots, self.params.max_new_tokens
        where = self._tensor([slot for _, slot, _ in admitted.rows])
        slots.hidden[where] = slots.prompt_hidden[self._tensor([prompt for _, _, prompt in admitted.rows])]
        new = [(self.prompts[row.prompt], row.sample) for row, _, _ in admitted.rows]
        slots.start[where] = self._tensor([prompt.next_position for prompt, _ in new])
        noise = [uniforms(self.key, prompt.record.id, sample, limit) for prompt, sample in new]
        slots.noise[where] = torch.stack(noise).to(self.device)
        slots.count[where] = 0
        slots.done[where] = False

    def _seat(self) -> None:
        """Tells the slots which rows share a prompt."""
        self.rows, self.held = self.scheduler.used_rows, self.scheduler.used_prompts
        members = self.scheduler.members()
        # A GPU replays steps of fixed shapes; elsewhere fewer members are less work.
        self.members = self.group_size if self.graphs is not None else max(map(len, members))
        flat = [row for rows in members for row in (*rows, *[0] * (self.members - len(rows)))]
        seats = [0] * self.rows
        for prompt, rows in enumerate(members):
            for place, row in enumerate(rows):
                seats[row] = prompt * self.members + place
        # Rounded extents reach beyond what is in use, where nothing may point at slots that they leave out.
        for buffer, values in ((self.slots.members, flat), (self.slots.seat, seats)):
            buffer[: len(values)] = self._tensor(values)
            buffer[len(values) :] = 0

    def _draw(self, rows: int) -> None:
        """Draws a token for each of the first `rows` slots, for those of finished rows to no effect."""
        slots, limit = self.slots, self.params.max_new_tokens
        count, done = slots.count[:rows], slots.done[:rows]
        place = count.masked_fill(done, limit)[:, None]
        uniform = slots.noise[:rows].gather(1, place.clamp(max=limit - 1)).squeeze(1)
        logits = self.backbone.lm_head(slots.hidden[:rows])
        tokens, logprobs = sample_tokens(logits, uniform, self.params, self.backbone.banned_token_ids)
        slots.tokens[:rows].scatter_(1, place, tokens[:, None])
        slots.logprobs[:rows].scatter_(1, place, logprobs[:, None])
        slots.token[:rows] = tokens
        count += ~done
        done |= (tokens[:, None] == self.stops).any(1) | (count == limit)

    def _decode(self) -> None:
        extent = Extent(
            rows=self.rows,
            prompts=self.held,
            members=self.members,
            prompt_tokens=max(self.sizes[prompt] for prompt in self.scheduler.prompts),
            new_tokens=self.scheduler.longest(self.steps),
        )
        if self.graphs is None:
            decode_step(self.weights, self.slots, extent)
        else:
            self.graphs.step(self.weights, self.slots, rounded(extent, self.slots, self.group_size))

    def _harvest(self, on_group: OnGroup | None) -> None:
        """Takes the completions that ended, and frees their slots."""
        done = self.slots.done[: self.rows].tolist()
        ended = [slot for slot in self.scheduler.rows if done[slot]]
        if not ended:
            return
        where = self._tensor(ended)
        counts = self.slots.count[where].tolist()
        tokens, logprobs = (kept[where, : max(counts)].cpu() for kept in (self.slots.tokens, self.slots.logprobs))
        for slot, count, own_tokens, own_logprobs in zip(ended, counts, tokens, logprobs, strict=True):
            row: Row = self.scheduler.rows[slot]
            group = self.ended[row.prompt]
            group[row.sample] = Completion(
                token_ids=own_tokens[:count].clone(),
                logprobs=own_logprobs[:count].clone(),
                finish="stop" if int(own_tokens[count - 1]) in self.backbone.processor.stop_token_ids else "length",
            )
            if len(group) == self.group_size:
                self.groups[row.prompt] = [group[sample] for sample in range(self.group_size)]
                if on_group is not None:
                    on_group(row.prompt, self.groups[row.prompt])
        self.scheduler.release(ended)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _look_every(device: torch.device) -> int:
    return 1 if device.type == "cpu" else _LOOK_EVERY
