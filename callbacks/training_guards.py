"""Warns of runs that have gone wrong, with the likely cause and what to change, or stops them in time."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from lit_vlaa.stopping import stop_run
from lit_vlaa.training_guards import (
    EntropyCollapse,
    FlatGroups,
    Guard,
    KLBlowUp,
    LossSpike,
    NotFinite,
    RewardCollapse,
    Truncation,
    Watch,
)


class TrainingGuards(Callback):
    """Watches the numbers of each training batch: an optimiser step of SFT, a rollout of GRPO.

    A guard speaks once when its numbers turn bad, and again only after they were well in between. TensorBoard shows how
    often each has spoken as `guards/<name>`. Guards that a run's numbers do not concern stay silent.
    """

    def __init__(
        self,
        *,
        not_finite: NotFinite | None = NotFinite(),
        loss_spike: LossSpike | None = LossSpike(),
        reward_collapse: RewardCollapse | None = RewardCollapse(),
        flat_groups: FlatGroups | None = FlatGroups(),
        entropy_collapse: EntropyCollapse | None = EntropyCollapse(),
        kl_blow_up: KLBlowUp | None = KLBlowUp(),
        truncation: Truncation | None = Truncation(),
    ) -> None:
        """Sets the guards; null leaves one out.

        Args:
            not_finite: Loss or gradient norm that is no number.
            loss_spike: A loss (SFT) or gradient norm (GRPO) far above the recent ones.
            reward_collapse: A reward far below its best.
            flat_groups: Groups without differences in reward.
            entropy_collapse: A policy that is sure of every token.
            kl_blow_up: A policy far away from its reference.
            truncation: Completions that run into the length limit.
        """
        chosen: tuple[Guard | None, ...] = (
            not_finite,
            loss_spike,
            reward_collapse,
            flat_groups,
            entropy_collapse,
            kl_blow_up,
            truncation,
        )
        self.watches = {guard.name: Watch(guard) for guard in chosen if guard is not None}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Looks at what the batch logged.

        Raises:
            RunStoppedError: If a guard with `action: stop` spoke; a checkpoint is saved first.
        """
        # Lightning's own record of them is complete only after the callbacks.
        metrics: dict[str, float] = getattr(pl_module, "latest", {})
        reasons = []
        for name, watch in self.watches.items():
            message = watch.update(metrics)
            if message is None:
                continue
            text = f"step {trainer.global_step}: {name}: {message}"
            if watch.guard.action == "stop":
                reasons.append(text)
            else:
                rank_zero_warn(text)
        counts = {f"guards/{name}": float(watch.count) for name, watch in self.watches.items()}
        pl_module.log_dict(counts, rank_zero_only=True)
        # The numbers are the same on all ranks, but a rank that stopped alone would leave the others waiting.
        if trainer.strategy.reduce_boolean_decision(bool(reasons), all=False):
            stop_run(trainer, "; ".join(reasons), {**metrics, **counts})

    def state_dict(self) -> dict[str, Any]:
        """What each guard has seen, so that a resumed run goes on as if it had never stopped."""
        return {name: watch.state() for name, watch in self.watches.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; guards that the interrupted run did not have start anew."""
        for name, watch in self.watches.items():
            if name in state_dict:
                watch.load_state(state_dict[name])
