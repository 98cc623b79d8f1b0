"""What SFT and GRPO have in common: one backbone, manual optimisation over micro-batches, the same on any strategy.

Each `training_step` receives this rank's share of a batch, cuts it into micro-batches by a token budget, and takes
whole optimiser steps. Losses are normalised by counts over all ranks, so neither the number of ranks nor the
micro-batches change the result beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

import lit_vlaa.strategies  # noqa: F401  # registers fsdp2 and its kin for Trainers made in Python
from lit_vlaa.answering import AnsweringPolicy
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.checkpoints import MODULE, WholeCheckpointIO
from lit_vlaa.generation.protocol import Generator as RolloutEngine
from lit_vlaa.loop_state import settle
from lit_vlaa.micro_batches import Batching, RowSize, count, divide
from lit_vlaa.optim import OptimConfig, build_optimizer, build_scheduler
from lit_vlaa.optimizer_states import check_kind
from lit_vlaa.packing import join
from lit_vlaa.parallel import accumulate, clip_gradients
from lit_vlaa.protocols import Preparable
from lit_vlaa.stopping import stop_run
from lit_vlaa.types import ModelInputs, Prompt, SamplingParams
from lit_vlaa.unfinished import UnfinishedRollout

_SKIPPED = "skipped_in_a_row"


class PolicyModule(AnsweringPolicy):
    """Base of the trainable policies."""

    def __init__(
        self,
        *,
        backbone: BackboneConfig,
        optim: OptimConfig,
        init_from: str | None,
        max_grad_norm: float,
        batching: Batching,
        max_tokens_per_micro_batch: int,
        max_skipped_steps: int,
        sampling: SamplingParams,
        generator: RolloutEngine | None,
        seed: int | None,
    ) -> None:
        """Keeps the settings; the model is built in `configure_model`, once the strategy is known."""
        super().__init__(backbone=backbone, init_from=init_from, sampling=sampling, generator=generator, seed=seed)
        if not max_grad_norm >= 0:
            raise ValueError(f"--model.max_grad_norm must be 0 (no clipping) or positive, got {max_grad_norm}")
        if max_tokens_per_micro_batch < 1:
            raise ValueError(f"--model.max_tokens_per_micro_batch must be at least 1, got {max_tokens_per_micro_batch}")
        if max_skipped_steps < 1:
            raise ValueError(f"--model.max_skipped_steps must be at least 1, got {max_skipped_steps}")
        self.automatic_optimization = False
        self.optim = optim
        self.max_grad_norm = max_grad_norm
        self.batching: Batching = batching
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.max_skipped_steps = max_skipped_steps
        self._logged: set[str] = set()
        self._skipped_in_a_row = 0
        self.latest: dict[str, float] = {}
        """What `log_train` was given last."""
        self.unfinished: UnfinishedRollout | None = None
        """A rollout of which optimiser steps are left; every checkpoint holds it."""

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Sees to checkpoints that are whole or not there, unless the Trainer was given another way to write them.

        Raises:
            ValueError: If the rollout engine says that it cannot work.
        """
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = WholeCheckpointIO()
        if isinstance(self.engine, Preparable):
            self.engine.prepare()

    def configure_model(self) -> None:
        """Builds the backbone, and pads rows where it cannot take them packed."""
        super().configure_model()
        if self.batching != "padded" and self.backbone.not_packed is not None:
            rank_zero_warn(f"--model.batching {self.batching}: rows are padded, as {self.backbone.not_packed}")
            self.batching = "padded"

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Begins to measure a batch; callbacks have read what the last one took."""
        self.meter.clear()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable parameters, with a schedule that is stepped after every optimiser step."""
        optimizer = build_optimizer(self.backbone.named_parameters(), self.optim)
        scheduler = build_scheduler(optimizer, self.optim, self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def steps_per_batch(self) -> int:
        """Optimiser steps that one batch of the data module gives."""
        return 1

    def total_steps(self) -> int:
        """Optimiser steps of the whole run, for the learning-rate schedule.

        Raises:
            ValueError: If neither the trainer nor the data module bounds the run.
        """
        trainer = self.trainer
        steps = self.steps_per_batch()
        batches = getattr(trainer.datamodule, "batches_per_epoch", None)  # type: ignore[attr-defined]
        bounds = [trainer.max_steps] if trainer.max_steps > 0 else []
        if batches is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            bounds.append(batches * trainer.max_epochs * steps)
        if not bounds:
            raise ValueError("the run has no end to plan the learning rate for: set --trainer.max_steps or max_epochs")
        return max(1, min(bounds))

    def take_step(self, sizes: Sequence[RowSize], loss_of: Callable[[Sequence[int]], Tensor]) -> float:
        """One optimiser step over this rank's rows.

        Args:
            sizes: Tokens of each row; padded rows go together in this order.
            loss_of: Gives the loss of some of the rows, already divided by the counts of the whole step over all ranks
                and micro-batches.

        Returns:
            The gradient's norm before clipping; where it is not finite, the weights were left as they are.
        """
        parts = self.micro_batches(sizes)
        for number, part in enumerate(parts):
            with accumulate(self, self.backbone, sync=number == len(parts) - 1):
                # DDP and FSDP2 average gradients over ranks; the losses of all ranks are meant to add up.
                self.manual_backward(loss_of(part) * self.trainer.world_size)
        norm = clip_gradients(self.backbone.parameters(), self.max_grad_norm)
        self._note_skipped(norm)
        self.count_step(moves=math.isfinite(norm))
        return norm

    def count_step(self, *, moves: bool) -> None:
        """Takes the step that was prepared; one that does not move the weights counts too, and the schedule goes on.

        Lightning's callbacks act where the steps are a multiple of some number, and look only at the end of a batch:
        after a step that did not count, batches of several steps would end beside the multiples for good.

        Args:
            moves: Whether weights and the optimiser's moments change; neither does without gradients.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # noqa: S101  # one optimiser is configured above
        scheduler: Any = self.lr_schedulers()
        if not moves:
            optimizer.zero_grad()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    def _note_skipped(self, norm: float) -> None:
        """Counts steps whose gradient was not finite, on every rank alike; the weights stayed as they were.

        Raises:
            RunStoppedError: After several in a row, as the run has broken down; a checkpoint is saved.
        """
        if math.isfinite(norm):
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        rank_zero_warn(f"step {self.global_step}: the gradient's norm is {norm}; the optimiser step was left out")
        if self._skipped_in_a_row >= self.max_skipped_steps:
            reason = (
                f"step {self.global_step}: {self.max_skipped_steps} gradients in a row were not finite; "
                "lower --model.optim.lr or --model.max_grad_norm"
            )
            self._skipped_in_a_row = 0  # whoever goes on has changed something
            stop_run(self.trainer, reason, {})

    def micro_batches(self, sizes: Sequence[RowSize]) -> list[list[int]]:
        """Divides rows into micro-batches, equally many on every rank: sharded forward passes are collective."""
        budget = self.max_tokens_per_micro_batch
        wanted = torch.tensor(count(sizes, budget, self.batching), device=self.device)
        parts = int(self.trainer.strategy.reduce(wanted, reduce_op="max"))
        return divide(sizes, min(parts, len(sizes)), budget, self.batching)

    def join(self, rows: Sequence[tuple[Prompt, Tensor]]) -> ModelInputs:
        """The inputs of one forward pass over prompts with their completions, laid out as `--model.batching` says."""
        if self._trainer is not None and self.trainer.training:
            self.meter.note_pass(rows, share_prompts=self.batching == "shared", training=torch.is_grad_enabled())
        return join(rows, self.batching, pad_token_id=self.processor.pad_token_id, device=self.device)

    def log_train(self, values: dict[str, float]) -> None:
        """Logs numbers that are the same on every rank, over optimiser steps rather than batches."""
        self.latest = values
        # Lightning would go on logging the last value of a name that does not occur this time.
        for result in (self.trainer._results or {}).values():
            if result.meta.name in self._logged - values.keys():
                result.reset()
        self._logged |= values.keys()
        self.log_dict({**values, "step": float(self.global_step)}, rank_zero_only=True)

    def step_boundary(self) -> None:
        """Gives callbacks their turn where all ranks are between two optimiser steps of one batch.

        Those with a method `on_step_boundary(trainer, module)`, a hook that Lightning does not have, may save and stop.
        """
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            hook = getattr(callback, "on_step_boundary", None)
            if hook is not None:
                hook(self.trainer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Records what is left to do, and which module the run was of."""
        checkpoint[MODULE] = type(self).__name__
        checkpoint[_SKIPPED] = self._skipped_in_a_row
        if "loops" in checkpoint:
            validation = self.trainer.fit_loop.epoch_loop.val_loop
            settle(
                checkpoint["loops"]["fit_loop"],
                batches=self.trainer.num_training_batches,
                unfinished=self.unfinished is not None,
                validating=self.trainer.validating
                and self.trainer.state.fn == "fit"
                and validation.batch_progress.current.completed < sum(validation.max_batches),
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with the run of another module or another optimiser.

        Raises:
            ValueError: If it is one.
        """
        module = checkpoint.get(MODULE, type(self).__name__)
        if self.trainer.training and module != type(self).__name__:
            raise ValueError(
                f"--ckpt_path: the checkpoint's run is one of {module}; start this one from its weights with "
                "--model.init_from"
            )
        for state in checkpoint.get("optimizer_states", ()) if self.trainer.training else ():
            check_kind(state, self.optim.optimizer)
        self._skipped_in_a_row = checkpoint.get(_SKIPPED, 0)
