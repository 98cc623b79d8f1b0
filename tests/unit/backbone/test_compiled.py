"""Compiled decoder layers give the same scores and gradients, and step aside where they cannot."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from helpers.launch import run_ranks
from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.packing import pack
from lit_vlaa.sequences import assemble
from lit_vlaa.types import ModelInputs, SamplingParams

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)


def inputs_of(backbone: Backbone, layout: str, extra: int) -> ModelInputs:
    prompts = mixed_prompts(backbone)
    rows = [(prompt, torch.arange(50, 53 + extra + place)) for place, prompt in enumerate(prompts * 2)]
    return assemble(rows, pad_token_id=0) if layout == "padded" else pack(rows, share_prompts=True)


def gradients(backbone: Backbone, inputs: ModelInputs) -> tuple[Tensor, list[Tensor]]:
    backbone.zero_grad()
    loss = -backbone(inputs).logprobs.mean()
    loss.backward()
    return loss.detach(), [p.grad for p in backbone.parameters() if p.grad is not None]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("padded", {}),
        ("shared", {"gradient_checkpointing": True, "lora": LoRAConfig(rank=4)}),
    ],
)
def test_the_same_numbers_for_any_number_of_tokens(layout: str, options: dict[str, Any]) -> None:
    plain, compiled = tiny_backbone(**options), tiny_backbone(compile=True, **options)
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    graphs = []
    for extra in (0, 9, 4):
        inputs = inputs_of(plain, layout, extra)
        (loss, expected), (ours, own) = gradients(plain, inputs), gradients(compiled, inputs)
        # Fused kernels round elsewhere: a few float32 roundings of a loss of 6 and of gradients of up to 10.
        torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)
        for mine, theirs in zip(own, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        with torch.no_grad(), compiled.without_adapters(), plain.without_adapters():
            torch.testing.assert_close(compiled(inputs).logprobs, plain(inputs).logprobs, rtol=1e-5, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[0] == graphs[2]  # other lengths need no others


@needs_compiler
@pytest.mark.slow
def test_ranks_with_adapters_train_as_without() -> None:
    common = {"kind": "sft", "strategy": "ddp", "devices": 2, "limit_batches": 2}
    runs = {str(on): {**common, "backbone": {"compile": on}} for on in (False, True)}
    for rank in run_ranks("helpers.adapted:run_all", runs=runs, timeout=280):
        for ours, theirs in zip(rank["True"]["logged"], rank["False"]["logged"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


class Compiler:
    """Stands for `torch.compile`; counts calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(*inputs: Any, **options: Any) -> Any:
            self.calls += 1
            if self.error is not None:
                raise self.error
            return function(*inputs, **options)

        return run


def test_only_whole_sequences_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    backbone, plain = tiny_backbone(compile=True).eval(), tiny_backbone().eval()
    key, params = RolloutKey(seed=1, step=0), SamplingParams(max_new_tokens=3)
    ours, theirs = (
        CachedGenerator().generate(model, mixed_prompts(model), group_size=2, params=params, key=key)
        for model in (backbone, plain)
    )
    assert compiler.calls == 0
    assert [[c.token_ids.tolist() for c in group] for group in ours] == [
        [c.token_ids.tolist() for c in group] for group in theirs
    ]
    backbone(inputs_of(backbone, "padded", 0))
    assert compiler.calls == 2  # one a layer


def test_layers_that_do_not_compile_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = torch._dynamo.exc.Unsupported("no compiler\nhere", case_name="test")
    compiler = Compiler(error)
    monkeypatch.setattr(torch, "compile", compiler)
    backbone, plain = tiny_backbone(compile=True), tiny_backbone()
    inputs = inputs_of(plain, "shared", 0)
    with caplog.at_level(logging.WARNING, logger="lit_vlaa"):
        assert all(backbone(inputs).logprobs.equal(plain(inputs).logprobs) for _ in range(2))
    assert compiler.calls == 1
    assert caplog.text.count("--model.backbone.compile: the layers run uncompiled: no compiler") == 1


def test_a_missing_compiler_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    from torch._inductor import config  # noqa: PLC0415  # takes seconds
    from torch._inductor.utils import fresh_cache  # noqa: PLC0415

    torch._dynamo.reset()
    backbone, plain = tiny_backbone(compile=True), tiny_backbone()
    inputs = inputs_of(plain, "padded", 0)
    with fresh_cache(), config.patch({"cpp.cxx": ("/no/such/compiler",)}), caplog.at_level(logging.WARNING):
        assert backbone(inputs).logprobs.equal(plain(inputs).logprobs)
    assert "the layers run uncompiled" in caplog.text
    torch._dynamo.reset()
