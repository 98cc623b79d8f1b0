from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from datamodules import VLAAThinkingDataModule
from datamodules.rows import BadRecord
from datamodules.sampler import deal
from datamodules.synthetic import SyntheticPaths, write_dataset
from lit_vlaa.prompts import PromptConfig
from lit_vlaa.types import BoxSpace, Prompt, PromptBatch, Sample, SFTBatch


class FakeProcessor:
    """Writes one token a character of the chat, and the mean colour as the image's only patch."""

    box_space: BoxSpace = "qwen2_5_vl"

    def encode(self, sample: Sample) -> Prompt:
        parts = (part for message in sample.messages for part in message["content"])
        text = "".join(part["text"] if part["type"] == "text" else "#" for part in parts)
        ids = torch.tensor([ord(letter) for letter in text])
        pixels = [
            torch.tensor(list(image.tobytes()), dtype=torch.float32).view(-1, 3).mean(0) for image in sample.images
        ]
        return Prompt(
            record=sample.record,
            input_ids=ids,
            position_ids=torch.arange(len(ids)).expand(3, -1),
            pixel_values=torch.stack(pixels) if pixels else None,
            image_grid_thw=torch.ones(len(pixels), 3, dtype=torch.int64) if pixels else None,
            image_sizes=tuple(image.size for image in sample.images),
            box_space=sample.box_space,
        )

    def encode_response(self, text: str) -> Tensor:
        return torch.tensor([*map(ord, text), 0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    root = tmp_path_factory.mktemp("vlaa") / "data"
    return write_dataset(root, sft_count=50, grpo_count=40, test_count=7, seed=0, progress=False)


def module(data: SyntheticPaths, stage: str | None = "fit", **changes: Any) -> VLAAThinkingDataModule:
    split = changes.get("split", "sft")
    options: dict[str, Any] = {
        "split": split,
        "data_file": str(data.data_file(split)),
        "image_root": str(data.image_root),
        "batch_size": 4,
        "eval_batch_size": 3,
        "num_workers": 0,
    }
    made = VLAAThinkingDataModule(**(options | changes))
    made.attach_processor(FakeProcessor())
    if stage is not None:
        made.prepare_data()
        made.setup(stage)
    return made


def on_rank(made: VLAAThinkingDataModule, rank: int, world_size: int) -> VLAAThinkingDataModule:
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return made


def origins(batch: Any) -> list[str]:
    return [prompt.record.origin for prompt in batch.prompts]


def ids_of(made: VLAAThinkingDataModule, part: str = "train") -> set[str]:
    batches: Any = made.train_dataloader() if part == "train" else made.val_dataloader()
    return {prompt.record.id for batch in batches for prompt in batch.prompts}


def test_sft_batches_hold_prompts_and_responses(data: SyntheticPaths) -> None:
    batch = next(iter(module(data).train_dataloader()))
    assert isinstance(batch, SFTBatch)
    assert len(batch) == len(batch.responses) == 4
    for prompt, response in zip(batch.prompts, batch.responses, strict=True):
        assert "".join(map(chr, response[:-1].tolist())) == prompt.record.response
        assert prompt.record.question in "".join(map(chr, prompt.input_ids.tolist()))
        assert prompt.image_sizes == ((84, 84),)
        assert not prompt.padding


def test_grpo_batches_hold_prompts(data: SyntheticPaths) -> None:
    made = module(data, split="grpo", prompt=PromptConfig(system_prompt="", box_space="qwen2_vl"))
    batch = next(iter(made.train_dataloader()))
    assert isinstance(batch, PromptBatch)
    assert {prompt.box_space for prompt in batch.prompts} == {"qwen2_vl"}
    assert all(prompt.record.truth for prompt in batch.prompts)
    assert all(chr(int(prompt.input_ids[0])) == "#" for prompt in batch.prompts)


def test_workers_change_nothing(data: SyntheticPaths) -> None:
    alone, helped = (list(module(data, num_workers=workers).train_dataloader()) for workers in (0, 2))
    assert [origins(batch) for batch in alone] == [origins(batch) for batch in helped]
    assert len(alone) == module(data).batches_per_epoch == 12
    for one, other in zip(alone[0].prompts, helped[0].prompts, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.pixel_values, other.pixel_values)


class Witness(FakeProcessor):
    """Puts the process that encodes in the place of the tokens."""

    def encode(self, sample: Sample) -> Prompt:
        return replace(super().encode(sample), input_ids=torch.tensor([os.getpid()]))


@pytest.mark.parametrize("split", ["sft", "grpo"])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_encode_images_and_text(data: SyntheticPaths, split: Any, workers: int) -> None:
    made = module(data, split=split, num_workers=workers)
    made.attach_processor(Witness())
    batches: list[Any] = list(made.train_dataloader())
    at_work = {int(prompt.input_ids[0]) for batch in batches for prompt in batch.prompts}
    assert len(at_work) == max(1, workers)
    assert (os.getpid() in at_work) == (workers == 0)


def test_grpo_deals_the_global_batch_in_turn(data: SyntheticPaths) -> None:
    """Rollouts in checkpoints rely on it."""
    whole = [origins(batch) for batch in module(data, split="grpo").train_dataloader()]
    shares = [list(on_rank(module(data, split="grpo"), rank, 2).train_dataloader()) for rank in range(2)]
    for rows, even, odd in zip(whole, *shares, strict=True):
        assert (rows[0::2], rows[1::2]) == (origins(even), origins(odd))
    with pytest.raises(ValueError, match=r"batch_size=4 .*3 rank"):
        on_rank(module(data), 0, 3).train_dataloader()


def test_sft_deals_the_global_batch_by_the_length_of_its_text(data: SyntheticPaths) -> None:
    def length(prompt: Prompt) -> int:
        return len(prompt.record.question.encode()) + len((prompt.record.response or "").encode())

    whole = [list(batch.prompts) for batch in module(data, batch_size=8).train_dataloader()]
    shares = [list(on_rank(module(data, batch_size=8), rank, 2).train_dataloader()) for rank in range(2)]
    dealt = in_turn = 0
    for rows, one, other in zip(whole, *shares, strict=True):
        names = [prompt.record.id for prompt in rows]
        own = [[names.index(prompt.record.id) for prompt in batch.prompts] for batch in (one, other)]
        # The split of eight rows in two fours that `deal` makes of the true lengths.
        assert own == deal([length(prompt) for prompt in rows], 2)
        dealt += max(sum(length(rows[place]) for place in places) for places in own)
        in_turn += max(sum(map(length, rows[rank::2])) for rank in range(2))
    assert dealt < in_turn


def test_evaluation_pads_to_the_same_number_of_rows_on_every_rank(data: SyntheticPaths) -> None:
    made = module(data, val_file=str(data.data_file("sft", "val")))
    loaders: list[Any] = [on_rank(made, rank, 4).val_dataloader() for rank in range(4)]
    rows = [[prompt for batch in loader for prompt in batch.prompts] for loader in loaders]
    assert [len(prompts) for prompts in rows] == [2, 2, 2, 2]
    marked = [(prompt.record.id, prompt.padding) for pair in zip(*rows, strict=True) for prompt in pair]
    assert marked == [(f"VLAA-Thinking-SFT-val.json:{n}", False) for n in range(1, 8)] + [
        ("VLAA-Thinking-SFT-val.json:1", True)
    ]


def test_more_ranks_than_rows(data: SyntheticPaths) -> None:
    made = module(data, val_count=2)
    loaders: list[Any] = [on_rank(made, rank, 5).val_dataloader() for rank in range(5)]
    assert [next(iter(loader)).prompts[0].padding for loader in loaders] == [False, False, True, True, True]


@pytest.mark.parametrize(("split", "kind"), [("sft", SFTBatch), ("grpo", PromptBatch)])
def test_what_each_loader_gives(data: SyntheticPaths, split: Any, kind: type) -> None:
    made = module(data, None, split=split, val_count=3, test_file=str(data.data_file(split, "test")))
    made.prepare_data()
    made.setup()
    assert {type(batch) for batch in made.val_dataloader()} == {kind}
    assert [len(batch) for batch in made.test_dataloader()] == [3, 3, 1]
    assert {type(batch) for batch in made.test_dataloader()} == {kind}
    assert {type(batch) for batch in made.predict_dataloader()} == {PromptBatch}


def test_rows_held_out_are_not_trained_on_and_do_not_depend_on_the_subset(data: SyntheticPaths) -> None:
    whole = module(data, val_count=10, batch_size=1)
    part = module(data, val_count=10, batch_size=1, max_samples=8)
    less = module(data, val_count=10, batch_size=1, max_samples=5)
    assert len(ids_of(whole)) == 40
    assert len(ids_of(whole, "val")) == 10
    assert not ids_of(whole) & ids_of(whole, "val")
    assert ids_of(part, "val") == ids_of(whole, "val")
    assert ids_of(less) < ids_of(part) < ids_of(whole)
    assert len(ids_of(part)) == 8
    assert ids_of(module(data, val_count=10, batch_size=1, seed=1), "val") != ids_of(whole, "val")


def test_without_shuffling_rows_keep_the_file_s_order(data: SyntheticPaths) -> None:
    rows = [
        int(o.rpartition(":")[2]) for batch in module(data, shuffle=False).train_dataloader() for o in origins(batch)
    ]
    assert rows == list(range(1, 49))


def test_filters(data: SyntheticPaths) -> None:
    def found(**changes: Any) -> Counter[str]:
        made = module(data, split="grpo", batch_size=1, **changes)
        return Counter(prompt.record.source for batch in made.train_dataloader() for prompt in batch.prompts)

    everything = found()
    assert set(found(sources=["coco", "vizwiz"])) == {"coco", "vizwiz"}
    assert found(kinds=["mcq"]) == {name: everything[name] for name in ("geoqa170k", "arxivqa")}
    with pytest.raises(ValueError, match="leave none"):
        found(sources=["coco"], kinds=["mcq"])


def test_no_validation_data_no_loader(data: SyntheticPaths) -> None:
    assert module(data).val_dataloader() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"eval_batch_size": 0}, "eval_batch_size"),
        ({"max_samples": 0}, "max_samples"),
        ({"val_count": -1}, "val_count"),
        ({"num_workers": -1}, "num_workers"),
        ({"sources": ["imagenet"]}, "imagenet"),
        ({"val_file": "x", "val_count": 3}, "not both"),
        ({"truth_boxes": {"visual_genome": "plain"}}, "truth_boxes names .*visual_genome"),
        ({"truth_boxes": {"vg": "padded"}}, "truth_boxes says .*padded"),
    ],
)
def test_senseless_arguments_are_refused(data: SyntheticPaths, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        module(data, None, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kinds": ["mcq", "essay"]}, r"kinds names \['essay'\]"),
        ({"prompt": PromptConfig(instructions={"mqc": "x"})}, r"prompt.instructions names \['mqc'\]"),
    ],
)
def test_names_that_neither_are_known_nor_occur_are_refused(
    data: SyntheticPaths, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        module(data, **changes)


def test_the_kinds_in_use_are_named_with_their_first_rows(data: SyntheticPaths) -> None:
    made = module(data, split="grpo", kinds=["mcq", "iou"])
    file = str(data.data_file("grpo"))
    assert set(made.kinds_in_use) == {"mcq", "iou"}
    first: dict[str, str] = {}
    for number, row in enumerate(json.loads(Path(file).read_text(encoding="utf-8")), 1):
        first.setdefault(row.get("verifier_type"), f"{file}:{number}")
    assert made.kinds_in_use == {kind: first[kind] for kind in ("iou", "mcq")}


def test_errors_say_what_to_do(data: SyntheticPaths, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than batch_size=64"):
        module(data, batch_size=64)
    with pytest.raises(ValueError, match="leaves none"):
        module(data, val_count=50)
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        module(data, None, cache_dir=str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="test_file"):
        module(data).test_dataloader()
    with pytest.raises(FileNotFoundError, match="image_root"):
        module(data, image_root=str(tmp_path / "nowhere"))
    made = module(data)
    made._processor = None
    with pytest.raises(ValueError, match="attach_processor"):
        made.train_dataloader()
    made.trainer = SimpleNamespace(overfit_batches=1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="overfit_batches"):
        made.train_dataloader()


def copy_with(data: SyntheticPaths, folder: Path, rows: list[dict[str, Any]]) -> str:
    lines = data.data_file("sft").read_text(encoding="utf-8").splitlines()
    file = folder / "rows.json"
    file.write_text("\n".join([*lines, *map(json.dumps, rows)]), encoding="utf-8")
    return str(file)


def test_bad_rows_stop_or_are_left_out_and_counted(
    data: SyntheticPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = copy_with(data, tmp_path, [{"question": "?"}, {"image": "docvqa/no.png", "question": "?", "answer": "x"}])
    with pytest.raises(BadRecord, match=r"rows\.json:51"):
        module(data, data_file=file)
    with caplog.at_level(logging.WARNING):
        made = module(data, data_file=file, on_bad_record="skip", batch_size=50)
    assert made.batches_per_epoch == 1
    assert "50 rows used, 2 left out: 1 x answer" in caplog.text
    assert "1 x verifier_type" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_names_file_row_and_image(data: SyntheticPaths, tmp_path: Path, workers: int) -> None:
    answer = "<think>t</think><answer>a</answer>"
    file = copy_with(data, tmp_path, [{"image": "docvqa/bad.png", "question": "?", "answer": answer}])
    (data.image_root / "docvqa" / "bad.png").write_bytes(b"bad")
    made = module(data, data_file=file, batch_size=51, num_workers=workers)
    with pytest.raises(BadRecord, match=r"rows\.json:51: image: cannot be read.*docvqa/bad\.png"):
        list(made.train_dataloader())


def test_with_skip_the_next_row_stands_in_for_a_broken_image(
    data: SyntheticPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = "<think>t</think><answer>a</answer>"
    file = copy_with(data, tmp_path, [{"image": "docvqa/bad.png", "question": "?", "answer": answer}])
    (data.image_root / "docvqa" / "bad.png").write_bytes(b"bad")
    made = module(data, data_file=file, batch_size=51, shuffle=False, on_bad_record="skip")
    with caplog.at_level(logging.WARNING):
        (batch,) = made.train_dataloader()
    assert origins(batch)[50] == origins(batch)[0]
    assert "docvqa/bad.png" in caplog.text
    assert "rows.json:1 stands in for it" in caplog.text


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rows of vg whose boxes stand on the padded square: images of 80 x 60 begin at 10 / 80 = 0.125."""
    root = tmp_path_factory.mktemp("framed")
    (root / "vg" / "VG_100K").mkdir(parents=True)
    rows = []
    for number in range(20):
        name = f"vg/VG_100K/{number}.png"
        Image.new("RGB", (80, 60)).save(root / name)
        rows.append(
            {"id": str(number), "image": name, "question": "?", "gt": [0.0, 0.25, 0.5, 0.5], "verifier_type": "iou"}
        )
    (root / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return root


def framed_module(root: Path, stage: str | None = "fit", **changes: Any) -> VLAAThinkingDataModule:
    made = VLAAThinkingDataModule(
        split="grpo",
        data_file=str(root / "rows.json"),
        image_root=str(root),
        batch_size=5,
        eval_batch_size=5,
        num_workers=0,
        **changes,
    )
    made.attach_processor(FakeProcessor())
    made.prepare_data()
    if stage is not None:
        made.setup(stage)
    return made


def test_boxes_on_the_padded_square_reach_the_prompts_as_fractions_of_the_image(framed: Path) -> None:
    def truths(**changes: Any) -> set[str]:
        made = framed_module(framed, val_count=5, **changes)
        loaders: list[Any] = [made.train_dataloader(), made.val_dataloader()]
        return {prompt.record.truth for loader in loaders for batch in loader for prompt in batch.prompts}

    assert truths() == truths(truth_boxes={"coco": "padded_square"}) == {"[0.0, 0.25, 0.5, 0.5]"}
    # y: (0.25 * 80 - 10) / 60 = 1 / 6 and (0.5 * 80 - 10) / 60 = 1 / 2.
    (truth,) = truths(truth_boxes={"vg": "padded_square"})
    assert json.loads(truth) == pytest.approx([0.0, 1 / 6, 0.5, 0.5], abs=1e-12)


@pytest.mark.parametrize(("stage", "warned"), [("fit", 1), ("validate", 1), ("test", 1), ("predict", 0)])
def test_boxes_are_checked_on_load(framed: Path, caplog: pytest.LogCaptureFixture, stage: str, warned: int) -> None:
    file = str(framed / "rows.json")
    with caplog.at_level(logging.WARNING, "datamodules"):
        framed_module(framed, stage, val_file=file, test_file=file, truth_boxes={"vg": "padded_square"})
        made = on_rank(framed_module(framed, None, val_file=file, test_file=file), 1, 2)
        made.setup(stage)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "datamodules"):
        framed_module(framed, stage, val_file=file, test_file=file)
    assert len(caplog.records) == warned
    assert all("--data.truth_boxes '{vg: padded_square}'" in record.getMessage() for record in caplog.records)


def test_images_for_logging(data: SyntheticPaths) -> None:
    made = module(data)
    record = next(iter(made.train_dataloader())).prompts[0].record
    (image,) = made.open_images(record)
    assert (image.mode, image.size) == ("RGB", (84, 84))
    with pytest.raises(BadRecord, match="max_image_pixels"):
        module(data, max_image_pixels=84 * 84 - 1).open_images(record)


class Recorder(LightningModule):
    """Notes what it is given; a model of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.processor = FakeProcessor()
        self.seen: list[tuple[int, int, list[str]]] = []
        self.automatic_optimization = False

    def training_step(self, batch: SFTBatch, batch_idx: int) -> None:
        self.seen.append((self.current_epoch, batch_idx, origins(batch)))
        optimizer: Any = self.optimizers()
        self.manual_backward(self.weight * 1)
        optimizer.step()

    def validation_step(self, batch: SFTBatch) -> None:
        assert isinstance(batch, SFTBatch)

    def test_step(self, batch: SFTBatch) -> None:
        assert isinstance(batch, SFTBatch)
        self.seen.append((0, 0, origins(batch)))

    def predict_step(self, batch: PromptBatch) -> list[str]:
        assert isinstance(batch, PromptBatch)
        return origins(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(data: SyntheticPaths, folder: Path, workers: int, ckpt: Path | None = None, **changes: Any) -> Recorder:
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1),
        **changes,
    )
    made = module(data, None, batch_size=12, num_workers=workers, val_count=4)
    made._processor = None
    trainer.fit(recorder, datamodule=made, ckpt_path=None if ckpt is None else str(ckpt), weights_only=False)
    return recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "changes"), [(0, {}), (2, {}), (0, {"val_check_interval": 2}), (0, {"limit_val_batches": 0})]
)
def test_a_trainer_resumes_at_every_step_exactly(
    data: SyntheticPaths, tmp_path: Path, workers: int, changes: dict[str, Any]
) -> None:
    whole = train(data, tmp_path / "whole", workers, **changes).seen
    # 50 rows less 4 held out make 3 batches of 12 an epoch.
    assert [(epoch, index) for epoch, index, _ in whole] == [(e, i) for e in range(3) for i in range(3)]
    for step in range(1, 9) if not workers else (2, 3):
        resumed = train(data, tmp_path / "again", workers, tmp_path / "whole" / f"step={step}.ckpt", **changes).seen
        assert resumed == whole[step:], step


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_tests_and_predicts_every_row_once(data: SyntheticPaths) -> None:
    made = module(data, None, test_file=str(data.data_file("sft", "test")))
    made._processor = None
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.test(recorder, datamodule=made, verbose=False)
    predicted = trainer.predict(recorder, datamodule=made)
    file = data.data_file("sft", "test")
    expected = [f"{file}:{row}" for row in range(1, 8)]
    assert [origin for _, _, batch in recorder.seen for origin in batch] == expected
    assert [origin for batch in predicted or [] for origin in batch] == expected


def test_sft_prompts_for_other_boxes_than_its_responses_hold_are_warned_of(
    data: SyntheticPaths, caplog: pytest.LogCaptureFixture
) -> None:
    module(data, prompt=PromptConfig(box_space="normalized"))
    module(data, split="grpo", prompt=PromptConfig(box_space="qwen2_vl"))
    module(data, kinds=["mcq"], prompt=PromptConfig(box_space="qwen2_vl"))
    assert "box_space" not in caplog.text
    module(data, prompt=PromptConfig(box_space="auto"))
    assert "--data.prompt.box_space auto" in caplog.text
