"""The forward passes of `lit-vlaa study perplexity`, by Lightning's prediction loop on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, Trainer
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.perplexity import TextRow, TracePart
from lit_vlaa.perplexity_module import LikelihoodModule, Model, for_scoring, quiet
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.types import PromptBatch

Write = Callable[[ScoredResponse, float, int], None]
"""Takes a response with its sum of -log p and its tokens."""


def described(config: Any) -> tuple[Model, LightningDataModule]:
    """The model and the data of a parsed configuration.

    Args:
        config: With `trainer`, `model` and `data`.

    Raises:
        ValueError: If its model has no backbone of ours, or the data module refuses its arguments.
    """
    given = config["model"]["init_args"]
    if "backbone" not in given:
        raise ValueError(f"--config: {config['model']['class_path']} has no backbone; name lit_vlaa.sft.SFTModule, say")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=BackboneConfig)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parts: Any = {"backbone": given["backbone"], "data": config["data"]}
    made = parser.instantiate(Namespace(**parts))  # type: ignore[no-untyped-call]
    model = Model(
        backbone=for_scoring(made.backbone),
        init_from=given.get("init_from"),
        max_tokens=int(given.get("max_tokens_per_micro_batch", 8192)),
        batching=given.get("batching", "packed"),
        accelerator=config["trainer"]["accelerator"],
        precision=config["trainer"]["precision"],
    )
    return model, made.data


def score(
    model: Model, data: LightningDataModule, wanted: Mapping[str, ScoredResponse], *, part: TracePart, write: Write
) -> Counter[str]:
    """Scores responses to the data module's test rows.

    Args:
        model: What scores.
        data: Its prediction rows are the test rows.
        wanted: Responses by the id of their row.
        part: Tokens that count.
        write: Takes each result as it comes.

    Returns:
        How many were left out, by reason.
    """
    with quiet(), tqdm(total=len(wanted), desc="perplexity", unit="row", disable=None) as bar:
        trainer = Trainer(
            accelerator=model.accelerator,
            devices=1,
            precision=model.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
        )
        scorer = _Scorer(model, wanted, part=part, write=write, advance=bar.update)
        trainer.predict(scorer, datamodule=data, return_predictions=False)
    if missing := len(wanted.keys() - scorer.seen):
        scorer.skipped["their id is not among the test rows, or the row's image cannot be read"] += missing
    return scorer.skipped


class _Scorer(LikelihoodModule):
    """Looks up the response to each prompt and scores it."""

    def __init__(
        self,
        model: Model,
        wanted: Mapping[str, ScoredResponse],
        *,
        part: TracePart,
        write: Write,
        advance: Callable[[int], Any],
    ) -> None:
        super().__init__(model)
        self.wanted = wanted
        self.part: TracePart = part
        self.write, self.advance = write, advance
        self.seen: set[str] = set()
        self.skipped: Counter[str] = Counter()

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[str]:  # noqa: ARG002
        """Scores what there is a response to; gives the ids of these rows."""
        rows = []
        for prompt in batch.prompts:
            response = self.wanted.get(prompt.record.id)
            if response is None or prompt.padding or prompt.record.id in self.seen:
                continue
            self.seen.add(prompt.record.id)
            if response.question and response.question != prompt.record.question:
                self.skipped["the test row of their id asks another question"] += 1
                continue
            rows.append((response, TextRow(prompt, response.response, ended=response.finish != "length")))
        found = self.likelihoods([row for _, row in rows], self.part)
        for (response, _), one in zip(rows, found, strict=True):
            if one.tokens:
                self.write(response, one.nll, one.tokens)
            else:
                self.skipped[f"they have no token of the {self.part}"] += 1
        self.advance(len(rows))
        return [response.id for response, _ in rows]
