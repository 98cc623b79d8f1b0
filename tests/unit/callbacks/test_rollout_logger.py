"""What the rollout logger writes, and when."""

from __future__ import annotations

import html
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from callbacks import RolloutLogger
from callbacks.rollout_logger import beside_each_other, table
from helpers.samples import image, sample
from lit_vlaa.types import Record, RewardResult, ScoredGroup


def group(text: str = "<answer>2</answer>") -> ScoredGroup:
    record = sample("one", "How many?", (image(84, 84, 0),)).record
    results = (RewardResult(1.0, "digit", "2", "ok"), RewardResult(0.0, "digit", None, "no_answer"))
    return ScoredGroup(record, (text, "no idea"), results, (0.7, -0.7), (5, 2))


class Source:
    def open_images(self, record: Record) -> tuple[Image.Image, ...]:
        return tuple(image(84, 84, 0) for _ in record.images)


class FakeTrainer:
    """The few things that the callback asks of a Trainer."""

    def __init__(self, folder: Path) -> None:
        self.loggers = [TensorBoardLogger(folder, name="", version="v"), CSVLogger(folder, name="", version="v")]
        self.log_dir = self.loggers[0].log_dir
        self.datamodule = Source()
        self.is_global_zero = True
        self.global_step = 0


def run(callback: RolloutLogger, trainer: FakeTrainer, rollouts: int) -> None:
    for index in range(rollouts):
        trainer.global_step = index + 1
        outputs: dict[str, Any] = {"rollout": (group(), group())}
        callback.on_train_batch_end(trainer, None, outputs, None, index)  # type: ignore[arg-type]
    trainer.loggers[0].finalize("success")


def test_every_nth_rollout_goes_to_tensorboard_and_file(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    run(RolloutLogger(every_n_rollouts=2, prompts=1), trainer, rollouts=5)
    events = EventAccumulator(trainer.log_dir).Reload()
    assert [event.step for event in events.Images("rollouts/0")] == [1, 3, 5]
    assert events.Tags()["images"] == ["rollouts/0"]
    rows = [json.loads(line) for line in (Path(str(trainer.log_dir)) / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 5]
    assert rows[0]["completions"][1] == {"text": "no idea", "reward": 0.0, "status": "no_answer", "advantage": -0.7}


def test_counts_and_the_file_are_settable(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    run(RolloutLogger(every_n_rollouts=1, prompts=2, file=False), trainer, rollouts=1)
    assert EventAccumulator(trainer.log_dir).Reload().Tags()["images"] == ["rollouts/0", "rollouts/1"]
    assert not (Path(str(trainer.log_dir)) / "rollouts.jsonl").exists()
    assert table(group(), completions=1).count("\n| 1.00") == 1
    assert "no idea" not in table(group(), completions=1)


def test_a_resumed_run_keeps_the_rhythm(tmp_path: Path) -> None:
    first, second = RolloutLogger(every_n_rollouts=3), RolloutLogger(every_n_rollouts=3)
    run(first, FakeTrainer(tmp_path / "a"), rollouts=2)
    second.load_state_dict(first.state_dict())
    trainer = FakeTrainer(tmp_path / "b")
    run(second, trainer, rollouts=2)
    assert [event.step for event in EventAccumulator(trainer.log_dir).Reload().Images("rollouts/0")] == [2]


def test_hostile_text_stays_in_its_cell() -> None:
    shown = table(group("a | b\n| 9.99 | <img src=x onerror=alert(1)> `**`"), completions=4)
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2
    assert "<img" not in shown


def test_images_stand_side_by_side() -> None:
    assert beside_each_other([Image.new("RGB", (512, 100)), Image.new("L", (10, 20))]).shape == (
        50 + 2 * 2,
        (256 + 2 * 2) + 4 + (10 + 2 * 2) + 4,
        3,
    )


def test_a_white_image_has_a_frame_on_the_white_page() -> None:
    shown = beside_each_other([Image.new("RGB", (10, 20), "white")])
    assert (shown[:, :2] == 128).all()
    assert (shown[:2, :14] == 128).all()
    assert (shown[2:-2, 2:-6] == 255).all()


def test_text_of_the_policy_is_no_markdown_for_tensorboard() -> None:
    text = '[x](http://a.example/) ![y](http://a.example/p) _a_ **b** <http://a.example/>\n# it\'s "so" & \\(x\\)'
    shown = markdown_to_safe_html(table(group(text), completions=4))
    assert not re.search(r"<(a|img|em|h1)\b", shown)
    lines = "\n".join([*textwrap.wrap(text.partition("\n")[0], 72), text.partition("\n")[2]])
    assert lines in html.unescape(shown.replace("<br>", "\n"))


def test_long_completions_are_broken_into_lines() -> None:
    words = "word " * 40
    (row,) = [line for line in table(group(words), completions=1).splitlines() if "word" in line]
    lines = row.split(" | ")[-1].removesuffix(" |").split("<br>")
    assert [len(line) for line in lines] == [69, 69, 59]  # 14, 14 and 12 words of 4 letters and a blank between
    assert " ".join(lines) == words.strip()


@pytest.mark.parametrize("option", ["every_n_rollouts", "prompts", "completions"])
def test_counts_must_be_positive(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        RolloutLogger(**{option: 0})  # type: ignore[arg-type]
