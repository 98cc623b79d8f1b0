"""SFT: evaluation against torchmetrics and hand counts, and where a run stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchmetrics.text import Perplexity

from helpers.modules import EvaluatedData, InMemoryData, fit, make_module, quiet_trainer, train, training_samples
from helpers.samples import tiny_backbone


@pytest.fixture(scope="module")
def reference() -> dict[str, float]:
    """Loss, perplexity and accuracy of the five evaluated rows, from transformers' full logits, row by row."""
    backbone = tiny_backbone().eval()
    perplexity = Perplexity(ignore_index=-100)
    hits = tokens = 0
    for item in training_samples()[:5]:
        prompt = backbone.processor.encode(item)
        response = backbone.processor.encode_response(item.record.response or "")
        ids = torch.cat([prompt.input_ids, response])[None]
        images: dict[str, Any] = {}
        if prompt.pixel_values is not None:
            images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        with torch.no_grad():
            logits = backbone.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == backbone.processor.image_token_id).int(),
                **images,
            ).logits
        targets = ids[:, 1:].clone()
        targets[:, : prompt.input_ids.numel() - 1] = -100
        perplexity.update(logits[:, :-1], targets)
        hits += int((logits[0, :-1].argmax(-1) == targets[0]).sum())
        tokens += len(response)
    value = perplexity.compute()
    return {"loss": float(value.log()), "perplexity": float(value), "token_accuracy": hits / tokens}


@pytest.mark.parametrize(("verb", "stage"), [("validate", "val"), ("test", "test")])
@pytest.mark.parametrize("budget", [8192, 1])
def test_metrics_equal_torchmetrics_and_leave_padding_out(
    verb: str, stage: str, budget: int, reference: dict[str, float]
) -> None:
    module = make_module("sft", max_tokens_per_micro_batch=budget)
    (result,) = getattr(quiet_trainer(), verb)(module, EvaluatedData("sft"), verbose=False)
    for name, value in reference.items():
        assert result[f"{stage}/{name}"] == pytest.approx(value, rel=1e-5), name


def test_a_second_evaluation_starts_anew() -> None:
    module, trainer = make_module("sft"), quiet_trainer()
    (first,) = trainer.validate(module, EvaluatedData("sft"), verbose=False)
    (second,) = trainer.validate(module, EvaluatedData("sft"), verbose=False)
    assert first == second


def test_accuracy_counts_the_right_tokens() -> None:
    """A head that always writes one token is right exactly as often as the responses hold it."""
    module = make_module("sft")
    module.configure_model()
    responses = [module.processor.encode_response(item.record.response or "") for item in training_samples()[:5]]
    word = int(torch.cat(responses).mode().values)
    with torch.no_grad():
        for parameter in module.backbone.parameters():
            parameter.zero_()
        # One positive coordinate is left; the head is tied to the embeddings, where `word` has the most of it.
        module.backbone.get_parameter("model.model.language_model.norm.weight")[0] = 1.0
        embeddings = module.backbone.get_parameter("model.model.language_model.embed_tokens.weight")
        embeddings[:, 0] = 0.5
        embeddings[word, 0] = 1.0
    (result,) = quiet_trainer().validate(module, EvaluatedData("sft"), verbose=False)
    tokens = torch.cat(responses)
    assert result["val/token_accuracy"] == pytest.approx(float((tokens == word).float().mean()))


def test_one_batch_is_one_step_and_logs_the_same_names_every_time() -> None:
    outcome = train("sft")
    assert outcome["steps"] == 3
    names = {"train/loss", "train/perplexity", "train/token_accuracy", "train/grad_norm", "optim/lr"}
    assert [set(values) for values in outcome["logged"]] == [names] * 3
    for values, rate in zip(outcome["logged"], outcome["rates"], strict=True):
        assert values["optim/lr"] == rate
        assert values["train/perplexity"] == pytest.approx(torch.tensor(values["train/loss"]).exp().item())
    losses = [values["train/loss"] for values in outcome["logged"]]
    assert losses[2] < losses[0], "three steps on such rows must help"


@pytest.mark.parametrize("max_steps", [1, 2])
def test_max_steps_ends_the_run(max_steps: int) -> None:
    outcome = fit(make_module("sft"), InMemoryData("sft"), max_steps=max_steps, max_epochs=-1)
    assert outcome["steps"] == max_steps
    assert len(outcome["rates"]) == max_steps
