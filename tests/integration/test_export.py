"""`lit-vlaa export`: what transformers loads is the policy of the checkpoint, with what it was told in training."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from helpers.commands import checkpoint, command, lit, lit_in_ranks, version
from helpers.samples import image
from lit_vlaa.backbone import BackboneConfig, build_backbone, load_processor
from lit_vlaa.export.chat_template import with_system_prompt
from lit_vlaa.prompts import DEFAULT_SYSTEM_PROMPT

SHORT: dict[str, Any] = {"trainer__max_steps": 2, "trainer__limit_val_batches": 0, "model__optim__lr": 1e-2}
TOLD = {"data__prompt__system_prompt": DEFAULT_SYSTEM_PROMPT, "model__sampling__temperature": 0.7}
LORA = {"model__backbone__lora__rank": 4, "model__backbone__lora__alpha": 64}
RUNS: dict[str, dict[str, Any]] = {
    "weights": {},
    "lora": LORA,
    "qlora": {**LORA, "model__backbone__quantize": "nf4"},
}


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind: a file with all weights, with adapters, and a sharded folder of two ranks."""
    root = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        assert lit(*command("fit", "sft", dataset, root / name, **SHORT, **TOLD, **options)) == 0
    sharded = {"trainer__strategy": "fsdp2_sharded", "trainer__devices": 2}
    lit_in_ranks(command("fit", "sft", dataset, root / "sharded", **SHORT, **sharded))
    return {name: checkpoint(root / name) for name in (*RUNS, "sharded")}


@pytest.fixture(scope="module")
def folder(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with all weights, exported."""
    out = tmp_path_factory.mktemp("exported") / "my-model"
    assert lit("export", str(runs["weights"]), f"--output-dir={out}") == 0
    return out


def chat(content: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def inputs_of(path: Path) -> dict[str, torch.Tensor]:
    """A question on a picture through the folder's own tokenizer and image settings."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    images = Qwen2VLImageProcessorPil.from_pretrained(path)(images=[image(84, 56, 1)], return_tensors="pt")
    text: Any = tokenizer.apply_chat_template(
        chat([{"type": "image"}, {"type": "text", "text": "How many red circles?"}]),
        tokenize=False,
        add_generation_prompt=True,
    )
    count = int(images["image_grid_thw"].prod()) // 4
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")["input_ids"]
    mask = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return {"input_ids": ids, "mm_token_type_ids": mask, **images}


@pytest.mark.parametrize("name", [*RUNS, "sharded"])
def test_transformers_gives_the_logits_of_the_checkpoint(
    name: str, runs: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "weights":
        out = request.getfixturevalue("folder")
    else:
        out = tmp_path / name
        assert lit("export", str(runs[name]), f"--output-dir={out}") == 0
    inputs = inputs_of(out)
    ours = build_backbone(BackboneConfig(max_pixels=84 * 84), init_from=str(runs[name])).eval()
    theirs = AutoModelForImageTextToText.from_pretrained(out).eval()
    untrained = build_backbone(BackboneConfig(max_pixels=84 * 84)).eval()
    with torch.no_grad():
        expected, found, before = (model(**inputs).logits for model in (ours.model, theirs, untrained.model))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, before, atol=0.1)


def test_version_4_of_transformers_finds_its_own_settings(folder: Path) -> None:
    """Loaded by hand in 4.57.6: logits equal to the last bit; without these settings it failed, or drew a new head."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert text["rope_scaling"] == {"type": "mrope", "mrope_section": [4, 6, 6]}
    assert (text["rope_theta"], text["tie_word_embeddings"]) == (1e6, True)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in tokens
    assert "<|image_pad|>" in tokens["additional_special_tokens"]
    assert "<|image_pad|>" in AutoTokenizer.from_pretrained(folder).all_special_tokens


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None,
    reason="torchvision is not installed, which AutoProcessor needs for videos",
)
def test_the_cards_own_example_answers_as_predict_does(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoProcessor  # noqa: PLC0415

    # Without `runs`, so that it passes where there is torchvision but no peft.
    assert lit(*command("fit", "sft", dataset, tmp_path / "run", **SHORT, **TOLD)) == 0
    folder = tmp_path / "my-model"
    assert lit("export", str(checkpoint(tmp_path / "run")), f"--output-dir={folder}") == 0
    picture = tmp_path / "picture.png"
    image(84, 56, 1).save(picture)  # sides of whole patches, which no processor has to resize
    words = [f"--image={picture}", "--question=How many red circles?", "--device=cpu"]
    capsys.readouterr()
    assert lit("predict", str(folder), *words, "--model.sampling.temperature=0") in {0, 1}
    expected = capsys.readouterr().out.removesuffix("\n")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "url": str(picture)}, {"type": "text", "text": "How many red circles?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat(content), **options)
    tokens = model.generate(**inputs, do_sample=False)  # type: ignore[misc]
    assert DEFAULT_SYSTEM_PROMPT in processor.decode(inputs["input_ids"][0])
    assert processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == expected


def test_adapters_are_in_the_weights_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    assert lit("export", str(runs["lora"]), f"--output-dir={tmp_path / 'out'}") == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as tensors:
        assert not [name for name in tensors.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert "adapters are added" in (tmp_path / "out" / "README.md").read_text()


def test_a_chat_begins_as_in_training(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"type": "text", "text": "What is 1 + 1?"}]
    said = {"role": "system", "content": DEFAULT_SYSTEM_PROMPT}
    trained = load_processor(BackboneConfig()).tokenizer
    expected = trained.apply_chat_template([said, *chat(question)], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(chat(question), tokenize=False, add_generation_prompt=True) == expected
    other = [{"role": "system", "content": "Be brief."}, *chat(question)]
    assert tokenizer.apply_chat_template(other, tokenize=False) == trained.apply_chat_template(other, tokenize=False)


@pytest.mark.parametrize("prompt", ['say "no" \\ {{ 7 * 7 }} {% raw %}', "two\nlines\tand a tab", "é 漢字 😀 \u2028"])
def test_any_system_prompt_comes_out_as_it_is(prompt: str) -> None:
    tokenizer = load_processor(BackboneConfig()).tokenizer
    template = with_system_prompt(tokenizer.chat_template, prompt)
    text = tokenizer.apply_chat_template(chat([]), tokenize=False, chat_template=template)
    assert text.startswith(f"<|im_start|>system\n{prompt}<|im_end|>\n")
    assert with_system_prompt(tokenizer.chat_template, "") == tokenizer.chat_template


def test_settings_are_those_of_the_run(folder: Path, runs: dict[str, Path]) -> None:
    drawn = GenerationConfig.from_pretrained(folder)
    assert (drawn.do_sample, drawn.temperature, drawn.max_new_tokens) == (True, 0.7, 40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.convert_ids_to_tokens(token) for token in drawn.eos_token_id] == ["<|im_end|>", "<|endoftext|>"]
    images = json.loads((folder / "preprocessor_config.json").read_text())
    assert (images["processor_class"], images["max_pixels"]) == ("Qwen2_5_VLProcessor", 84 * 84)
    assert images["size"]["longest_edge"] == 84 * 84
    config = version(runs["weights"].parents[2]) / "config.yaml"
    assert (folder / "lit_vlaa_config.yaml").read_text() == config.read_text()


def test_the_card_tells_what_it_is(folder: Path, dataset: Path) -> None:
    card = (folder / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in metadata  # the embedded model is on no Hub
    assert set(metadata["tags"]) == {"lit-vlaa", "sft"}
    assert "# my-model" in body
    assert "for 2 optimiser steps" in body
    assert "| peak learning rate (`model.optim.lr`) | 0.01 |" in body
    assert "VLAA-Thinking-SFT.json; SHA-256" in body
    assert "lit-vlaa export" in body
    assert f"```text\n{DEFAULT_SYSTEM_PROMPT}\n```" in body
    assert str(dataset) not in card
    assert str(folder.parent) not in card
    assert ModelCard(card).data.to_dict() == metadata


def test_scores_of_an_evaluation_stand_in_the_card(
    runs: dict[str, Path], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("test", "sft", dataset, tmp_path / "test", model__init_from=runs["weights"])
    assert lit(*words) == 0
    row = {"headline": 41.5, "metric": "hits", "profile": "paper", "comparable": False, "caveat": "no judge"}
    row["numbers"] = {"stderr": 3.25, "n": 200}
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"step_0": None, "test": {"scope": "full", "benchmarks": {"mathvista": row}}}))
    scores = ["--scores", str(version(tmp_path / "test")), str(summary)]
    assert lit("export", str(runs["weights"]), f"--output-dir={tmp_path / 'out'}", *scores) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    how = "not comparable with the leaderboard: no judge; hits; scored by the paper profile of lit-vlaa"
    assert f"| mathvista | 41.5 % | 3.2 | 200 | {how} |" in card
    assert re.search(r"^\| test/loss \| [\d.]+ \| .* \| nats a token of the row's answer \|$", card, re.MULTILINE)
    assert "± is the standard error." in card
    assert "scores in the card" in capsys.readouterr().out
    for name, content, message in (
        ("empty.json", "{}", "no evaluation in it"),
        ("deep.json", "[" * 100_000, "recursion"),
        ("no.json", '{"test": {"benchmarks": {"mathvista": {"metric": "hits"}}}}', "no evaluation in it"),
        ("metrics.csv", "test/loss\n" + "9" * 200_000, "field larger than field limit"),
    ):
        csv.field_size_limit(100_000)  # the whole process's; who reads benchmarks raises it
        (tmp_path / name).write_text(content)
        words = ["export", str(runs["weights"]), f"--output-dir={tmp_path / 'more'}", f"--scores={tmp_path / name}"]
        assert lit(*words) == 2
        error = capsys.readouterr().err
        assert f"--scores {tmp_path / name}" in error
        assert message in error
        assert not (tmp_path / "more").exists()


def test_scores_of_two_flags_are_both_in_the_card(runs: dict[str, Path], tmp_path: Path) -> None:
    flags = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"test": {"benchmarks": {name: {"headline": 0}}}}))
        flags.append(f"--scores={tmp_path / name}.json")
    assert lit("export", str(runs["weights"]), f"--output-dir={tmp_path / 'out'}", *flags) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| one | 0.0 % |" in card
    assert "| two | 0.0 % |" in card


def test_a_run_whose_own_evaluation_never_ended_is_exported(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "version_0"
    (log / "benchmarks").mkdir(parents=True)
    (log / "benchmarks" / "summary.json").write_text('{"step_0": null}')
    config = (version(runs["weights"].parents[2]) / "config.yaml").read_text()
    (log / "config.yaml").write_text(config)
    (log / "a.ckpt").symlink_to(runs["weights"])
    out = tmp_path / "link"
    (tmp_path / "empty").mkdir()
    out.symlink_to("empty")
    assert lit("export", str(log / "a.ckpt"), f"--output-dir={out}") == 0
    said = capsys.readouterr().out
    assert f"configuration: {log / 'config.yaml'}" in said
    assert "no scores in the card" in said
    assert "lit_vlaa_config.yaml names /" in said
    assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file can grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_a_disk_that_fills_up_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert lit("export", str(runs["weights"]), f"--output-dir={out}") == 2
    assert f"--output-dir {out} cannot be written: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_folder_starts_another_run(folder: Path, dataset: Path, tmp_path: Path) -> None:
    assert lit(*command("fit", "sft", dataset, tmp_path, **SHORT, model__backbone__path=folder)) == 0


def test_weights_in_half_precision_and_in_several_files(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"--output-dir={out}", "--dtype=bfloat16", "--max-shard-gb=0.0005", "--name=Other name"]
    assert lit("export", str(runs["weights"]), *words) == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert "as bfloat16" in capsys.readouterr().out
    assert AutoModelForImageTextToText.from_pretrained(out).dtype == torch.bfloat16
    assert "# Other name" in (out / "README.md").read_text()


def test_what_cannot_be_exported_is_named(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"--output-dir={tmp_path / 'out'}"
    alone = tmp_path / "alone" / "deep" / "x.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(runs["weights"].read_bytes()[:1000])
    config = f"--config={version(runs['weights'].parents[2]) / 'config.yaml'}"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    for words, message in (
        (["export", str(tmp_path / "nothing.ckpt"), out], "nothing.ckpt does not exist; seen from "),
        (["export", str(alone), out], "name the run's configuration with --config"),
        (["export", str(alone), out, config], "cut off; give the .ckpt file of a run"),
        (["export", str(runs["weights"]), f"--output-dir={tmp_path / 'full'}"], "is there already"),
        (["export", str(runs["weights"]), out, "--max-shard-gb=0"], "must be positive"),
        (["export", str(runs["weights"]), out, "--max-shard-gb=nan"], "must be positive"),
        (["export", str(runs["weights"]), f"--output-dir={alone}/out"], "is a file; name a folder"),
        (["export", str(runs["weights"]), f"{out}{'t' * 300}"], "a name of at most 231 bytes is needed, not of 303"),
        (["export", str(runs["weights"]), out, f"--scores={tmp_path / 'no.json'}"], "does not exist"),
    ):
        assert lit(*words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
