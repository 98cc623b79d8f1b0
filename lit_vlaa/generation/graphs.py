"""CUDA graphs of the decoding step: one launch instead of some thousand, for each extent that occurs.

A graph reads and writes fixed addresses: those of the weights, which optimiser steps change in place, and those of the
slots. It is kept for the next rollout and used again if all of these lie where they lay, else captured anew.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from lit_vlaa.generation.cache import Slots
from lit_vlaa.generation.decoder import Extent, decode_step
from lit_vlaa.generation.weights import DecoderWeights

_log = logging.getLogger(__name__)

_WIDTH = 128
"""Extents are rounded up to multiples of so many tokens."""


def rounded(extent: Extent, slots: Slots, group_size: int) -> Extent:
    """The extent that a graph is captured for: one of few that cover `extent`.

    Args:
        extent: What must be read.
        slots: Their sizes bound the extent.
        group_size: Completions a prompt.
    """
    prompts, prompt_tokens = slots.prompt_bias.shape
    rows, new_tokens = slots.noise.shape
    return Extent(
        rows=min(_power_of_two(extent.rows), rows),
        prompts=min(_power_of_two(extent.prompts), prompts),
        members=group_size,
        prompt_tokens=min(-(-extent.prompt_tokens // _WIDTH) * _WIDTH, prompt_tokens),
        new_tokens=min(-(-extent.new_tokens // _WIDTH) * _WIDTH, new_tokens),
    )


class StepGraphs:
    """Graphs by extent."""

    def __init__(self) -> None:
        """Starts without any."""
        self._addresses: list[tuple[int, ...]] = []
        self._graphs: dict[Extent, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self.failed = False
        """Whether a step could not be captured; the steps of this and later rollouts then run one kernel at a time."""

    def begin(self, weights: DecoderWeights, slots: Slots) -> None:
        """Drops the graphs of earlier rollouts unless all that they read and write lies where it lay."""
        tensors: list[Tensor] = [*weights.tensors(), weights.rotary.inv_freq, *slots.all()]
        addresses = [(tensor.data_ptr(), *tensor.shape, *tensor.stride()) for tensor in tensors]
        if addresses != self._addresses:
            self._graphs.clear()
            self._pool = None
            self._addresses = addresses

    def step(self, weights: DecoderWeights, slots: Slots, extent: Extent) -> None:
        """`decode_step` by its graph, which is captured at its first use."""
        graph = self._graphs.get(extent)
        if graph is not None:
            graph.replay()
            return
        # Libraries set themselves up on first use, which no graph may contain; capturing itself computes nothing.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decode_step(weights, slots, extent)
        torch.cuda.current_stream().wait_stream(stream)
        if not self.failed:
            self._capture(weights, slots, extent)

    def _capture(self, weights: DecoderWeights, slots: Slots, extent: Extent) -> None:
        # Steps run one after the other and leave their result in the slots, so that they can share scratch memory.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                decode_step(weights, slots, extent)
        except RuntimeError as error:
            self.failed = True
            _log.warning("no CUDA graphs from here on, a step could not be captured: %s", error)
            return
        self._graphs[extent] = graph


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
