"""The label of weights, their files, and the folder that they go through."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.samples import tiny_backbone
from helpers.tiny_vllm import NAMES
from lit_vlaa.backbone.adapters import merged_weights
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.generation.vllm.weights import WeightFolder, version, write


def model(values: list[float], dtype: torch.dtype = torch.float32) -> nn.Module:
    result = nn.Linear(len(values), 1, bias=False)
    result.weight = nn.Parameter(torch.tensor([values], dtype=dtype))
    return result


def test_a_version_tells_the_smallest_change() -> None:
    values = [0.0, 1.0, -1.0, 3.0]
    label = version(model(values), None)
    assert label == version(model(values), None)
    others = [
        version(model([values[1], values[0], *values[2:]]), None),  # two exchanged
        version(model([0.0, 1.0 + 2**-23, -1.0, 3.0]), None),  # the last bit of one
        version(model([-0.0, 1.0, -1.0, 3.0]), None),  # the sign of zero
        version(model(values, torch.bfloat16), None),
        version(model(values), torch.bfloat16),  # written otherwise
        version(model([*values, 0.0]), None),
    ]
    assert len({label, *others}) == 7


def test_a_version_covers_numbers_beyond_the_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = version(model([1.0, 2.0, 3.0, 4.0, 5.0]), None)
    monkeypatch.setattr("lit_vlaa.generation.vllm.weights._AT_ONCE", 2)
    assert version(model([1.0, 2.0, 3.0, 4.0, 5.0]), None) == whole
    assert version(model([3.0, 2.0, 1.0, 4.0, 5.0]), None) != whole
    assert version(model([1.0, 2.0, 3.0, 4.0, 6.0]), None) != whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.float64], ids=str)
def test_versions_of_any_type(dtype: torch.dtype) -> None:
    def label(last: int) -> str:
        holder = nn.Module()
        holder.weight = nn.Parameter(torch.tensor([1, 2, last], dtype=dtype), requires_grad=False)
        return version(holder, None)

    assert label(3) == label(3) != label(4)


def test_files_hold_all_weights_under_names_that_vllm_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_vlaa.generation.vllm.weights._FILE_BYTES", 500_000)
    backbone = tiny_backbone()
    write(backbone.model, tmp_path, None)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = dict(backbone.model.named_parameters())  # the head is the embedding, which is written once
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert all(name.startswith(NAMES) for name in state)


def test_mixed_precision_writes_what_matrices_compute_with(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    write(backbone.model, tmp_path, torch.bfloat16)
    state = load_file(tmp_path / "model-00000.safetensors")
    query = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(state[query], dict(backbone.model.named_parameters())[query].bfloat16())
    assert state["model.language_model.norm.weight"].dtype == torch.float32


def test_adapters_are_added(tmp_path: Path) -> None:
    backbone = tiny_backbone(lora=LoRAConfig(rank=4))
    before = version(backbone.model, None)
    assert version(tiny_backbone(lora=LoRAConfig(rank=4, alpha=99)).model, None) != before  # no parameter tells it
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    assert version(backbone.model, None) != before
    write(backbone.model, tmp_path, None)
    state = load_file(tmp_path / "model-00000.safetensors")
    merged = merged_weights(backbone.model)
    assert state.keys() == merged.keys() - {"lm_head.weight"}
    assert all(torch.equal(state[name], merged[name]) for name in state)


def test_an_untied_head_is_written(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    backbone.model.lm_head.weight = nn.Parameter(backbone.lm_head.weight.detach().clone() + 1)  # type: ignore[operator]
    write(backbone.model, tmp_path, None)
    assert "lm_head.weight" in load_file(tmp_path / "model-00000.safetensors")


def test_the_folder_holds_files_under_the_lock_alone(tmp_path: Path) -> None:
    folder = WeightFolder(str(tmp_path / "weights"))
    folder.make()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "lit-vlaa-old").mkdir()
    (folder.path / ".lit-vlaa-older.part").mkdir()  # a process was killed while it wrote
    backbone = tiny_backbone()
    with folder.locked():
        assert [entry.name for entry in folder.path.iterdir()] == ["lock"]
        put = folder.put("lit-vlaa-new", backbone.model, None)
        assert [entry.name for entry in put.iterdir()] == ["model-00000.safetensors"]
        assert folder.put("lit-vlaa-new", backbone.model, None) == put  # for another server
    assert [entry.name for entry in folder.path.iterdir()] == ["lock"]


def test_a_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    folder = WeightFolder(str(tmp_path))
    folder.make()
    context = multiprocessing.get_context("fork")
    got = context.Event()
    with folder.locked():
        other = context.Process(target=_take, args=(str(tmp_path), got), daemon=True)
        other.start()
        assert not got.wait(0.3)
    assert got.wait(120)
    other.join(120)


def _take(path: str, got: object) -> None:
    with WeightFolder(path).locked():
        got.set()  # type: ignore[attr-defined]


def test_folders_that_others_could_write_to_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o770)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("open", "group", "link"):
        with pytest.raises(ValueError, match=rf"--model.generator.weights_dir .*{name} must be a folder of yours"):
            WeightFolder(str(tmp_path / name)).make()
    with pytest.raises(ValueError, match=r"--model.generator.weights_dir .*file"):
        WeightFolder(str(tmp_path / "file")).make()
