"""The backbone against transformers' own forward pass, and what loads, freezes and fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.samples import mixed_prompts, mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.backbone.weights import load_weights
from lit_vlaa.sequences import assemble
from lit_vlaa.types import ModelInputs


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone().eval()


def rows_of(backbone: Backbone) -> tuple[list[tuple[object, torch.Tensor]], ModelInputs]:
    rows = [
        (prompt, backbone.processor.encode_response(item.record.response or ""))
        for prompt, item in zip(mixed_prompts(backbone), mixed_samples(), strict=True)
    ]
    return rows, assemble(rows, pad_token_id=backbone.processor.pad_token_id)  # type: ignore[return-value]


def test_positions_equal_transformers(backbone: Backbone) -> None:
    for prompt in mixed_prompts(backbone):
        ids = prompt.input_ids[None]
        if prompt.image_grid_thw is None:
            assert prompt.position_ids.equal(torch.arange(ids.shape[1]).expand(3, -1))
            continue
        expected, _ = backbone.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == backbone.processor.image_token_id).int(),
            image_grid_thw=prompt.image_grid_thw,
        )
        assert prompt.position_ids.equal(expected[:, 0])


def test_scores_equal_transformers_forward_pass(backbone: Backbone) -> None:
    rows, inputs = rows_of(backbone)
    with torch.no_grad():
        scores = backbone(inputs)
    expected = []
    for prompt, response in rows:
        ids = torch.cat([prompt.input_ids, response])[None]  # type: ignore[attr-defined]
        images = {}
        if prompt.pixel_values is not None:  # type: ignore[attr-defined]
            images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}  # type: ignore[attr-defined]
        with torch.no_grad():
            logits = backbone.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == backbone.processor.image_token_id).int(),
                **images,
            ).logits[0]
        logprobs = torch.log_softmax(logits[:-1], -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        expected.append(logprobs[-len(response) :])
    # fp32 rounding: batched rows with padding against one row at a time.
    torch.testing.assert_close(scores.logprobs, torch.cat(expected), atol=2e-5, rtol=0)


def test_company_and_padding_do_not_change_gradients(backbone: Backbone) -> None:
    rows, inputs = rows_of(backbone)
    backbone.zero_grad()
    backbone(inputs).logprobs.sum().backward()
    together = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    for row in rows:
        backbone(assemble([row], pad_token_id=0)).logprobs.sum().backward()  # type: ignore[list-item]
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, together[name], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_implementations_agree(backbone: Backbone, implementation: str) -> None:
    _, inputs = rows_of(backbone)
    other = tiny_backbone(attention=implementation).eval()
    with torch.no_grad():
        torch.testing.assert_close(other(inputs).logprobs, backbone(inputs).logprobs, atol=2e-5, rtol=0)


def test_gradient_checkpointing_changes_nothing(backbone: Backbone) -> None:
    _, inputs = rows_of(backbone)
    gradients = []
    for model in (tiny_backbone().train(), tiny_backbone(gradient_checkpointing=True, logprob_chunk=7).train()):
        model(inputs).logprobs.sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert model.model.is_gradient_checkpointing
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [(("vision",), {"vision"}), (("merger", "vision"), {"merger", "vision"}), (("language",), {"language"})],
)
def test_freeze_stops_exactly_the_named_parts(freeze: tuple[str, ...], frozen: set[str]) -> None:
    backbone = tiny_backbone(freeze=freeze)
    for name, parameter in backbone.named_parameters():
        part = "merger" if "visual.merger" in name else "vision" if "visual" in name else "language"
        assert parameter.requires_grad == (part not in frozen), name


def test_text_only_rows_still_reach_a_training_tower(backbone: Backbone) -> None:
    prompt = mixed_prompts(backbone)[2]
    inputs = assemble([(prompt, torch.tensor([5, 6]))], pad_token_id=0)
    model = tiny_backbone()
    model(inputs).logprobs.sum().backward()
    gradients = [p.grad for p in model.visual.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs).logprobs, backbone(inputs).logprobs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_holds_for_every_parameter(dtype: str) -> None:
    assert {p.dtype for p in tiny_backbone(dtype=dtype).parameters()} == {getattr(torch, dtype)}


def test_a_saved_backbone_loads_from_its_directory(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_pretrained(tmp_path)
    loaded = build_backbone(BackboneConfig(path=str(tmp_path), max_pixels=84 * 84)).eval()
    _, inputs = rows_of(backbone)
    _, again = rows_of(loaded)
    assert again.input_ids.equal(inputs.input_ids)
    with torch.no_grad():
        assert loaded(again).logprobs.equal(backbone(inputs).logprobs)


def test_paths_that_hold_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--model.backbone.path .*"):
        build_backbone(BackboneConfig(path=str(tmp_path)))
    for gone in (f"{tmp_path}/saevd", "./saevd", "runs/export/saevd"):
        with pytest.raises(ValueError, match=rf"--model\.backbone\.path {gone} does not exist; seen from "):
            build_backbone(BackboneConfig(path=gone))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="gpt2"):
        build_backbone(BackboneConfig(path=str(tmp_path)))


def test_init_from_loads_a_checkpoint_and_names_what_is_wrong(tmp_path: Path) -> None:
    source, target = tiny_backbone(), tiny_backbone()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    weights = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "good.ckpt")
    load_weights(target, tmp_path / "good.ckpt")
    assert all(a.equal(b) for a, b in zip(source.parameters(), target.parameters(), strict=True))

    torch.save({"state_dict": {**weights, "backbone.extra": torch.zeros(1)}}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="extra"):
        load_weights(target, tmp_path / "odd.ckpt")
    torch.save({"epoch": 1}, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="no state_dict"):
        load_weights(target, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"--model\.init_from .*absent\.ckpt does not exist"):
        load_weights(target, tmp_path / "absent.ckpt")
    torch.save(Path("x"), tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match=r"code\.ckpt cannot be read as tensors and plain values"):
        load_weights(target, tmp_path / "code.ckpt")
    source.save_pretrained(tmp_path / "hub")
    with pytest.raises(ValueError, match=r"--model.backbone.path"):
        load_weights(target, tmp_path / "hub")


@pytest.mark.parametrize(
    "options", [{"min_pixels": 9, "max_pixels": 4}, {"logprob_chunk": 0}, {"freeze": ("vision", "merger", "language")}]
)
def test_settings_out_of_range_name_their_flag(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"--model\.backbone\."):
        BackboneConfig(**options)  # type: ignore[arg-type]


def test_rotary_frequencies_keep_their_precision_when_the_weights_lose_theirs() -> None:
    backbone = tiny_backbone()

    def frequencies() -> list[torch.Tensor]:
        return [value for name, value in backbone.named_buffers() if name.endswith(".inv_freq")]

    before = [value.clone() for value in frequencies()]
    backbone.to(torch.bfloat16)
    after = frequencies()
    assert len(before) == 2
    assert all(a.dtype == torch.float32 and a.equal(b) for a, b in zip(after, before, strict=True))
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
