"""Decoder layers through `torch.compile`, one graph for all of them and for any number of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_log = logging.getLogger(__name__)


def compile_layers(language_model: nn.Module) -> None:
    """Has the layers of a decoder compiled when they first run; parameters and their names stay as they are.

    Hooks, and with them sharding and gradient checkpointing, stay outside. Passes that fill a cache run as before: the
    layers differ in where they write, so that each would have a graph of its own.
    """
    run = _Run()
    for layer in language_model.layers:  # type: ignore[union-attr]
        plain = layer.forward
        layer.forward = run.of(plain, torch.compile(plain, dynamic=True))


class _Run:
    """Takes the compiled way until it fails, for all layers together."""

    def __init__(self) -> None:
        self._works = True

    def of(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
        """One layer's way."""

        def forward(*inputs: Any, **options: Any) -> Any:
            if not self._works or options.get("past_key_values") is not None:
                return plain(*inputs, **options)
            try:
                return compiled(*inputs, **options)
            except torch._dynamo.exc.TorchDynamoException as error:
                # Compilation comes before computation, so nothing has happened yet.
                self._works = False
                first = str(error).strip().partition("\n")[0]
                _log.warning("--model.backbone.compile: the layers run uncompiled: %s", first)
                return plain(*inputs, **options)

        return forward
