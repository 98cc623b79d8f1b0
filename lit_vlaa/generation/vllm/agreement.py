"""Whether a server's log-probabilities are the learner's: a few of its completions, scored by teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_vlaa.backbone.model import Backbone
from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Completion, Prompt, SamplingParams


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far apart two models are on the same tokens, in nats."""

    mean: float
    """Mean absolute difference of a token's log-probability."""
    largest: float
    tokens: int

    def plus(self, other: Agreement) -> Agreement:
        """Both together."""
        tokens = self.tokens + other.tokens
        mean = (self.mean * self.tokens + other.mean * other.tokens) / tokens
        # Whichever comes first, a number that is none stays none.
        return Agreement(mean=mean, largest=float(torch.tensor([self.largest, other.largest]).max()), tokens=tokens)

    def __str__(self) -> str:
        return f"mean difference {self.mean:.2g}, largest {self.largest:.2g} over {self.tokens} tokens"

    def check(self, where: str, *, max_mean: float, max_largest: float) -> None:
        """Refuses a server that is too far from the learner.

        Args:
            where: The server, for the message.
            max_mean: Largest mean difference to let pass.
            max_largest: Largest difference of one token to let pass.

        Raises:
            EngineLostError: If it is farther.
        """
        if self.mean <= max_mean and self.largest <= max_largest:
            return
        raise EngineLostError(
            f"{where}: its log-probabilities are not the learner's ({self}; --model.generator.max_mean_difference "
            f"{max_mean:g}, max_difference {max_largest:g}). What is usually wrong: the server runs without "
            "--logprobs-mode processed_logprobs; its --dtype is not the precision of --trainer.precision and "
            "--model.backbone.dtype; it holds weights of another model or an older step; it prepares images otherwise "
            "(--mm-processor-kwargs)"
        )


@torch.no_grad()
def compare(backbone: Backbone, prompt: Prompt, completions: Sequence[Completion], params: SamplingParams) -> Agreement:
    """Scores completions with the learner, under the precision that is in force.

    Args:
        backbone: The policy, whole.
        prompt: What they answer.
        completions: With a server's log-probabilities.
        params: How they were drawn.
    """
    apart = torch.cat([(_own(backbone, prompt, one, params) - one.logprobs).abs() for one in completions])
    return Agreement(mean=float(apart.mean()), largest=float(apart.max()), tokens=apart.numel())


def _own(backbone: Backbone, prompt: Prompt, completion: Completion, params: SamplingParams) -> Tensor:
    """`[C]` log-probabilities; one completion at a time, as a rollout leaves little memory."""
    rows = [(prompt, completion.token_ids)]
    inputs = assemble(rows, pad_token_id=backbone.processor.pad_token_id, device=backbone.device)
    # Not by calling the module: under FSDP2 its hooks would gather and free parameters on this rank alone.
    return backbone.forward(inputs, temperature=params.temperature or 1.0, ban=True).logprobs.cpu()
