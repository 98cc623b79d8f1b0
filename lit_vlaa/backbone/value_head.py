"""A scalar head on the backbone: reward models in the layout of Skywork-VL-Reward-7B.

The layout: a Qwen2.5-VL in the Hub's form and, beside its weights, `value_head.safetensors` with one linear layer,
`v_head.summary.weight` `[1, H]` and `v_head.summary.bias` `[1]`. TRL's `AutoModelForCausalLMWithValueHead` names it so;
LLaMA-Factory and ms-swift write it. The card's code leaves TRL's head in float32 above a bfloat16 trunk and the head
casts its input up; so does this one. TRL's dropout ahead of the head does nothing in evaluation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.backbone.model import Backbone, build_backbone, check_type
from lit_vlaa.backbone.offload import weights_on
from lit_vlaa.backbone.processor import naming_path
from lit_vlaa.sequences import assemble, micro_batch_count, split_contiguous
from lit_vlaa.types import ModelInputs, Prompt

VALUE_HEAD_FILE = "value_head.safetensors"

_WEIGHT, _BIAS = "v_head.summary.weight", "v_head.summary.bias"

_log = logging.getLogger(__name__)


class ValueHeadModel(nn.Module):
    """A backbone that gives one number a row. Never trained.

    Args:
        backbone: The trunk; its language-model head is dropped, because nothing reads it.
        weight: `[1, H]`.
        bias: `[1]`.
    """

    def __init__(self, backbone: Backbone, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.model.lm_head = nn.Identity()
        self.weight = nn.Parameter(weight.float())
        self.bias = nn.Parameter(bias.float())
        self.requires_grad_(False).eval()

    def forward(self, inputs: ModelInputs) -> Tensor:
        """`[B]` float32: what the head says of each row's last target token."""
        hidden = self.backbone.hidden_states(inputs)
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = (places * inputs.target_mask).amax(dim=1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return nn.functional.linear(hidden[rows, last].float(), self.weight, self.bias).squeeze(-1)


def load_value_head_model(config: BackboneConfig) -> ValueHeadModel:
    """Loads trunk and head onto the CPU. What can be wrong with the folder is found before the large files are read.

    Raises:
        ValueError: If the path holds no such model; the message names the backbone's flag.
    """
    with naming_path(config):
        weight, bias = _read_head(config)
        model_config = AutoConfig.from_pretrained(config.path, revision=config.revision)
        check_type(model_config.model_type)
        width = model_config.get_text_config().hidden_size
        if weight.shape != (1, width) or bias.shape != (1,):
            raise ValueError(
                f"the head in {VALUE_HEAD_FILE} has a weight of shape {tuple(weight.shape)} and a bias of shape "
                f"{tuple(bias.shape)}; the model's hidden size asks for (1, {width}) and (1,)"
            )
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"the head in {VALUE_HEAD_FILE} holds numbers that are not finite")
    return ValueHeadModel(build_backbone(config), weight, bias)


class ValueHeadRun:
    """Runs a model over rows with weights that are not its own. Made by `running`.

    Args:
        model: Gives the code, and the shapes.
        weights: Its parameters and buffers by name, where the rows are to be scored.
        device: That place.
    """

    def __init__(self, model: ValueHeadModel, weights: dict[str, Tensor], device: torch.device) -> None:
        self._model = model
        self._weights = weights
        self._device = device
        self._pad = model.backbone.processor.pad_token_id

    def scores(self, rows: Sequence[tuple[Prompt, Tensor]], *, max_tokens: int) -> list[float | None]:
        """Scores rows.

        Rows of one prompt stay together, so that its images are encoded once; prompts with long rows go together.

        Args:
            rows: Pairs of a prompt and the `[C]` tokens that follow it, at least one.
            max_tokens: Padded tokens in one forward pass; a single longer row stands alone.

        Returns:
            The score of each row at its last token. None where it is not finite, and where even a batch of this row
            alone exceeds the memory.
        """
        results: list[float | None] = [None] * len(rows)
        lengths = [prompt.input_ids.numel() + ids.numel() for prompt, ids in rows]
        longest: dict[int, int] = {}
        first: dict[int, int] = {}
        for i, (prompt, _) in enumerate(rows):
            longest[id(prompt)] = max(lengths[i], longest.get(id(prompt), 0))
            first.setdefault(id(prompt), i)
        prompts = [id(prompt) for prompt, _ in rows]
        order = sorted(range(len(rows)), key=lambda i: (-longest[prompts[i]], first[prompts[i]], -lengths[i]))
        sizes = [lengths[i] for i in order]
        for part in split_contiguous(sizes, micro_batch_count(sizes, max_tokens)) if rows else ():
            chosen = order[part.start : part.stop]
            for i, score in zip(chosen, self._batch([rows[i] for i in chosen]), strict=True):
                results[i] = score
        return results

    def _batch(self, rows: list[tuple[Prompt, Tensor]]) -> list[float | None]:
        try:
            return [score if math.isfinite(score) else None for score in self._forward(rows)]
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                prompt, ids = rows[0]
                _log.warning(
                    "%s: %d tokens exceed the memory", prompt.record.origin, prompt.input_ids.numel() + ids.numel()
                )
                return [None]
        # Outside of the handler, which holds on to the tensors of the pass that failed.
        half = len(rows) // 2
        return self._batch(rows[:half]) + self._batch(rows[half:])

    def _forward(self, rows: list[tuple[Prompt, Tensor]]) -> list[float]:
        inputs = assemble(rows, pad_token_id=self._pad, device=self._device)
        scores: Tensor = functional_call(self._model, self._weights, (inputs,))
        return scores.tolist()


@contextmanager
def running(model: ValueHeadModel, device: torch.device, *, offload: bool) -> Iterator[ValueHeadRun]:
    """Runs `model` on `device`, undisturbed by what a trainer has open around it (autocast, inference mode).

    Args:
        model: With `offload` its own tensors stay where and what they are, whatever happens meanwhile.
        device: Where to run.
        offload: Run with copies of the weights, which go when the context is left; otherwise move the model itself.

    Raises:
        torch.OutOfMemoryError: If the device has no room for the weights.
    """
    with torch.inference_mode(mode=False), torch.no_grad(), ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if not offload:
            model.to(device)
        yield ValueHeadRun(model, weights_on(model, device), device)


def _read_head(config: BackboneConfig) -> tuple[Tensor, Tensor]:
    file = str(Path(config.path, VALUE_HEAD_FILE))
    if not Path(config.path).is_dir():
        try:
            file = str(cached_file(config.path, VALUE_HEAD_FILE, revision=config.revision))
        except OSError as error:
            raise ValueError(
                f"no such folder, nor {VALUE_HEAD_FILE} at the Hub: {str(error).splitlines()[0]}"
            ) from error
    elif not Path(file).is_file():
        raise ValueError(f"there is no {VALUE_HEAD_FILE} in this folder")
    try:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            if not {_WEIGHT, _BIAS} <= names:
                raise ValueError(f"{VALUE_HEAD_FILE} holds {sorted(names)[:4]}, not {_WEIGHT} and {_BIAS}")
            return stored.get_tensor(_WEIGHT), stored.get_tensor(_BIAS)
    except SafetensorError as error:
        raise ValueError(f"{VALUE_HEAD_FILE} is damaged: {error}") from error
