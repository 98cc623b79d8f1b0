"""Checkpoints of adapters: what they hold, and every way to start from one or to resume it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.adapted import fit
from helpers.hostile_shards import Trap, rewrite
from helpers.launch import alone
from helpers.samples import tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.backbone.adapter_state import NOTE, AdapterNote, fingerprint
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.checkpoints import save_sharded
from unit.backbone.test_adapters import adapted, scores

NF4: dict[str, Any] = {"quantize": "nf4"}


def save(backbone: Backbone, path: Path) -> Path:
    """A checkpoint with nothing but weights."""
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in backbone.state_dict().items()}}, path)
    return path


def moved(**options: Any) -> Backbone:
    """A backbone as full training leaves it."""
    backbone = tiny_backbone(**options)
    generator = torch.Generator().manual_seed(9)
    for parameter in backbone.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    return backbone


def start(init_from: Path | str | None, lora: dict[str, Any] | None = None, **options: Any) -> Tensor:
    """What a run that starts from `init_from` thinks of the samples at its first step."""
    config = BackboneConfig(max_pixels=84 * 84, lora=LoRAConfig(**(lora or {})), **options)
    return scores(build_backbone(config, init_from=None if init_from is None else str(init_from)))


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, NF4])
def test_a_checkpoint_holds_adapters_and_a_note(options: dict[str, Any]) -> None:
    backbone = adapted(**options)
    state = backbone.state_dict()
    assert {name for name in state if ".lora_" not in name} == {NOTE}
    assert len(state) == 2 * 14 + 1
    note = AdapterNote.decode(state[NOTE])
    assert (note.rank, note.alpha, note.quantize) == (4, 8.0, options.get("quantize"))
    assert (note.path, note.init_from) == ("tiny", None)
    assert note.base == fingerprint(tiny_backbone().model)


@pytest.mark.parametrize("options", [{}, NF4])
def test_weights_come_back(options: dict[str, Any]) -> None:
    source, target = adapted(**options), adapted(trained=False, **options)
    assert not scores(target).equal(scores(source))
    result = target.load_state_dict(source.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert scores(target).equal(scores(source))


def test_fingerprints_tell_weights_apart_and_types_not() -> None:
    plain = fingerprint(tiny_backbone().model)
    assert fingerprint(moved().model) != plain
    assert fingerprint(tiny_backbone().model) == plain
    assert fingerprint(tiny_backbone(dtype="bfloat16").model) == plain


def test_adapters_trained_in_another_type_fit(tmp_path: Path) -> None:
    """SFT in float32, adapters beside its weights in bfloat16, and the sum in float32 again."""
    whole = save(moved(), tmp_path / "whole.ckpt")
    paths = []
    for dtype in ("bfloat16", "float32"):
        config = BackboneConfig(max_pixels=84 * 84, lora=LoRAConfig(rank=4, alpha=8.0), dtype=dtype)
        own = build_backbone(config, init_from=str(whole))
        own.load_state_dict({**adapted().state_dict(), NOTE: own.state_dict()[NOTE]})
        paths.append(save(own, tmp_path / f"{dtype}.ckpt"))
    assert start(paths[0]).equal(start(paths[1]))


def with_note(path: Path, **changes: Any) -> Path:
    """A checkpoint of adapters with a note that has been changed."""
    stored = torch.load(path)
    key = f"backbone.{NOTE}"
    stored["state_dict"][key] = replace(AdapterNote.decode(stored["state_dict"][key]), **changes).encode()
    torch.save(stored, path)
    return path


def test_where_the_type_matters_it_is_named(tmp_path: Path) -> None:
    changes = {"base": "another", "dtype": "bfloat16"}
    path = with_note(save(adapted(), tmp_path / "adapters.ckpt"), **changes)
    with pytest.raises(ValueError, match=r"give --model\.backbone\.dtype bfloat16, or .*BASE::.*adapters\.ckpt"):
        start(path)
    with pytest.raises(ValueError, match=r"path tiny, --model\.init_from null, --model\.backbone\.dtype bfloat16"):
        adapted().load_state_dict({**adapted().state_dict(), NOTE: torch.load(path)["state_dict"][f"backbone.{NOTE}"]})


def test_start_of_adapters_from_whole_weights(tmp_path: Path) -> None:
    source = moved()
    path = save(source, tmp_path / "whole.ckpt")
    assert start(path, {"rank": 4}).equal(scores(source))
    near(start(path, {"rank": 4}, **NF4), start(path, {"rank": 2}, **NF4))


def test_start_from_adapters(tmp_path: Path) -> None:
    source = adapted()
    path = save(source, tmp_path / "adapters.ckpt")
    near(start(path), scores(source))
    near(start(path, {"rank": 2, "targets": ("q_proj",)}), scores(source))


def test_start_from_adapters_beside_four_bits(tmp_path: Path) -> None:
    source = adapted(**NF4)
    path = save(source, tmp_path / "adapters.ckpt")
    near(start(path), scores(source))
    # The sum of dequantised weights and adapters does not lie on the levels of 4 bits any more.
    assert 1e-3 < float((start(path, {"rank": 2}, **NF4) - scores(source)).abs().mean()) < 0.5


def test_start_from_adapters_of_a_run_that_started_from_a_checkpoint(tmp_path: Path) -> None:
    whole = save(moved(), tmp_path / "whole.ckpt")
    lora = LoRAConfig(rank=4)
    first = build_backbone(BackboneConfig(max_pixels=84 * 84, lora=lora), init_from=str(whole))
    first.load_state_dict({**first.state_dict(), **{n: v for n, v in adapted().state_dict().items() if n != NOTE}})
    path = save(first, tmp_path / "first.ckpt")
    near(start(path), scores(first))
    second = build_backbone(BackboneConfig(max_pixels=84 * 84, lora=lora), init_from=str(path))
    again = save(second, tmp_path / "second.ckpt")
    near(start(again), scores(first))
    moved_away = whole.rename(tmp_path / "elsewhere.ckpt")
    with pytest.raises(
        ValueError, match=r"first\.ckpt: .* beside .*whole\.ckpt, .* any more; .*init_from BASE::.*/first\.ckpt$"
    ):
        start(path)
    near(start(f"{moved_away}::{path}"), scores(first))
    with pytest.raises(ValueError, match=r"second\.ckpt: .*init_from BASE::.*/first\.ckpt::.*/second\.ckpt$"):
        start(again)
    near(start(f"{moved_away}::{path}::{again}"), scores(first))
    third = build_backbone(BackboneConfig(max_pixels=84 * 84, lora=lora), init_from=f"{moved_away}::{path}")
    near(start(save(third, tmp_path / "third.ckpt")), scores(first))


def test_a_note_leads_to_a_folder_as_to_a_file(tmp_path: Path) -> None:
    source, folder = moved(), tmp_path / "whole.ckpt"
    with alone(tmp_path):
        save_sharded({"state_dict": {f"backbone.{name}": v for name, v in source.state_dict().items()}}, folder)
    first = build_backbone(BackboneConfig(max_pixels=84 * 84, lora=LoRAConfig(rank=4)), init_from=str(folder))
    path = save(first, tmp_path / "adapters.ckpt")
    near(start(path), scores(source))
    near(start(f"{folder}::{path}"), scores(source))


def test_a_note_that_leads_to_a_trap(tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    with alone(tmp_path):
        save_sharded({"state_dict": {}}, bait)
    trap = Trap(tmp_path / "sprung")
    rewrite(bait, lambda _: trap)
    path = with_note(save(adapted(), tmp_path / "adapters.ckpt"), base="another", init_from=str(bait))
    with pytest.raises(ValueError, match=r"bait/\.metadata is no index of PyTorch's: it names .*, which can run code"):
        start(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [1, 2])
def test_notes_that_lead_in_a_circle_are_named(length: int, tmp_path: Path) -> None:
    paths = [save(adapted(), tmp_path / f"{place}.ckpt") for place in range(length)]
    for path, base in zip(paths, paths[1:] + paths[:1], strict=True):
        with_note(path, base="another", init_from=str(base))
    with pytest.raises(ValueError, match=r"which need it in their turn; .*--model\.init_from BASE::"):
        start(paths[0])


def test_a_corrupt_checkpoint_is_no_start(tmp_path: Path) -> None:
    path = save(moved(), tmp_path / "whole.ckpt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"--model\.init_from .*whole\.ckpt is corrupt: "):
        start(path)
    folder = tmp_path / "folder.ckpt"
    with alone(tmp_path):
        save_sharded({"state_dict": {f"backbone.{name}": v for name, v in moved().state_dict().items()}}, folder)
    shard = folder / "__0_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"--model\.init_from .*folder\.ckpt is incomplete: __0_0\.distcp"):
        start(folder)


def test_start_from_adapters_beside_another_model(tmp_path: Path) -> None:
    moved().save_pretrained(tmp_path / "hub")
    path = save(adapted(path=str(tmp_path / "hub")), tmp_path / "adapters.ckpt")
    with pytest.raises(ValueError, match=r"other weights than those of tiny; give --model\.backbone\.path .*hub"):
        start(path)
    (tmp_path / "hub").rename(tmp_path / "elsewhere")
    assert start(path, path=str(tmp_path / "elsewhere")).isfinite().all()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"lora": {"rank": 2}}, r"lora\.rank 4"),
        ({"lora": {"alpha": 2.0}}, r"lora\.alpha 8\.0"),
        ({"lora": {"targets": ("q_proj",)}}, r"lora\.targets \[\]"),
        ({"lora": {"parts": ("language", "merger")}}, r"lora\.parts \['language'\]"),
        (NF4, r"quantize null"),
    ],
)
def test_adapters_of_other_settings_are_refused(options: dict[str, Any], wanted: str) -> None:
    target = adapted(**options)
    with pytest.raises(ValueError, match=rf"belong to other settings; give .*--model\.backbone\.{wanted}"):
        target.load_state_dict(adapted().state_dict())


def test_adapters_beside_other_weights_are_refused(tmp_path: Path) -> None:
    moved().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"give --model\.backbone\.path tiny, --model\.init_from null"):
        adapted(path=str(tmp_path)).load_state_dict(adapted().state_dict())


def test_whole_weights_and_adapters_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"holds whole weights, .* --model\.init_from"):
        adapted().load_state_dict(tiny_backbone().state_dict())
    with pytest.raises(ValueError, match=r"holds adapters: give --model\.backbone\.lora\.rank 4 .*alpha 8, or"):
        tiny_backbone().load_state_dict(adapted().state_dict())


def test_a_damaged_note_is_named() -> None:
    with pytest.raises(ValueError, match="note on its adapters cannot be read"):
        AdapterNote.decode(torch.zeros(8, dtype=torch.uint8))


def test_a_path_too_long_for_the_note_is_named() -> None:
    note = AdapterNote(
        rank=1,
        alpha=1.0,
        parts=[],
        targets=[],
        quantize=None,
        path="tiny",
        dtype="float32",
        init_from="/x" * 4096,
        base="",
    )
    with pytest.raises(ValueError, match=r"--model\.init_from .* too long"):
        note.encode()


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("options", [{}, {"backbone": NF4}, {"lora": None, "optim": {"optimizer": "adamw_8bit"}}])
def test_resumed_equals_uninterrupted_bit_by_bit(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    expected = fit(kind, epochs=2, **options)
    half = fit(kind, save=str(tmp_path / "half.ckpt"), **options)
    resumed = fit(kind, epochs=2, resume=str(tmp_path / "half.ckpt"), **options)
    assert resumed == expected
    assert half["weights"] != expected["weights"]
    assert half["steps"] * 2 == expected["steps"]
