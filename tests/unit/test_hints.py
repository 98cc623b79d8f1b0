from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import lit_vlaa
from helpers import documented
from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.hints import BESIDE, NEAREST, configuration_fault, hint, meant, missing, nearest, unknown_option
from lit_vlaa.lightning_cli import Parsed

ROOT = Path(__file__).resolve().parents[2]
KNOWN = ("optim.lr", "optim.min_lr", "backbone.lora.rank", "backbone.path", "seed", "seed.help", "optim.betas+")
GRPO = ["fit", f"--config={ROOT / 'configs/quickstart/grpo.yaml'}"]


@pytest.fixture(autouse=True)
def _one_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning warns of arguments beside those of the process."""
    monkeypatch.setattr(sys, "argv", ["lit-vlaa"])


@pytest.mark.parametrize(
    ("message", "option"),
    [
        ("unrecognized arguments: --trainer.max_stepz 3", "trainer.max_stepz"),
        ("unrecognized arguments: --data-fil=x", "data-fil"),
        ("Option 'batchsize' is not accepted", "batchsize"),
        ("Group 'backbone' does not accept option 'paht'", "backbone.paht"),
        ("Subcommand 'fit' does not accept option 'trainr.max_steps'", "trainr.max_steps"),
        ("unrecognized arguments: configs/sft.yaml", None),
        ("Option 'a' is not accepted\nand more", None),
        ("expected one argument", None),
    ],
)
def test_unknown_options_are_recognised(message: str, option: str | None) -> None:
    assert unknown_option(message) == option


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("backbone.paht", f"{NEAREST}backbone.path"),
        ("lora.rank", f"{NEAREST}backbone.lora.rank"),
        ("optim.learning_rate", f"{BESIDE}lr, min_lr"),  # spelt like none of them
        ("bogus", ""),
        ("sede", f"{NEAREST}seed"),  # of so few letters one may be wrong
    ],
)
def test_what_was_meant(option: str, expected: str) -> None:
    assert hint(option, KNOWN) == expected


def test_long_groups_are_cut() -> None:
    letters = "abcdefghijklmn"
    assert hint("group.something", [f"group.{letter}" for letter in letters]) == (
        f"{BESIDE}a, b, c, d, e, f, g, h, i, j, k, l, ..."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer:\n  max_steps: 2\n   max_epochs: 3\n", ":3:14: this is no YAML: mapping values are not allowed here"),
        ("- a\n- b\n", ": a configuration is made of lines such as `trainer:`"),
        ("image,question\na.png,How many?\n", ": a configuration is made of lines such as `trainer:`"),
        ("# nothing\n", " holds nothing; a configuration is made of lines such as `trainer:`"),
        ("trainer: {max_steps: 2}\n", ""),
    ],
    ids=["indent", "list", "table", "empty", "good"],
)
def test_files_that_are_no_configuration(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    fault = configuration_fault(path)
    assert fault.startswith(expected)
    assert bool(fault) == bool(expected)


def test_configurations_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sft.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert configuration_fault(Path("sft.yml")) == f" does not exist; seen from {tmp_path}; did you mean sft.yaml?"
    assert configuration_fault(Path("none/sft.yaml")) == f" does not exist; seen from {tmp_path}"
    assert configuration_fault(tmp_path) == " is a folder; name a file in it"
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert configuration_fault(Path("bytes.yaml")).startswith(" cannot be read: ")


def test_configurations_that_only_the_parser_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("seed_everything: 7\n")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait, and leave nothing for the parser
    assert configuration_fault(Path("~/own.yaml")) == configuration_fault(tmp_path / "pipe") == ""
    assert configuration_fault(tmp_path / ("n" * 300)).startswith(" cannot be read: ")
    for config in ("~/own.yaml", "seed_everything: 7"):
        assert Parsed("fit", [*GRPO, f"--config={config}"]).config["fit"]["seed_everything"] == 7


def test_the_flags_before_a_nested_option_are_named() -> None:
    text = f"Parser key \"model\":\n  Errors:\n    - Option 'lrr' is not accepted{NEAREST}lr\n    - Expected a thing"
    assert one_line(text) == "--model.lrr: there is no such option; did you mean --model.lr?; Expected a thing"


def refused(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        Parsed("fit", list(words))
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.max_stepz", "3"], "--trainer.max_stepz 3; did you mean --trainer.max_steps?"),
        (["--data.batchsize", "3"], "--data.batchsize: there is no such option; did you mean --data.batch_size?"),
        (
            ["--model.lora.rank", "4"],
            "--model.lora.rank: there is no such option; did you mean --model.backbone.lora.r",
        ),
        (["--model.optim.learning_rate", "1"], "--model.optim.learning_rate: there is no such option; beside it there"),
        (["configs/sft.yaml"], "configs/sft.yaml; a configuration is named by --config FILE"),
        (["--config=none.yaml"], "--config none.yaml does not exist; seen from "),
    ],
)
def test_the_command_line_says_what_was_meant(words: list[str], expected: str) -> None:
    assert expected in refused(*GRPO, *words)


def test_a_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model: {init_args: {backbone: {paht: tiny}}}\n")
    assert refused(*GRPO, f"--config={path}") == (
        "--model.backbone.paht: there is no such option; did you mean --model.backbone.path?"
    )


def test_the_engine_on_its_page_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `on_group`; one without annotations is refused in words that say so."""
    page = (ROOT / "docs/howto/own_engine.md").read_text(encoding="utf-8")
    code = documented.files(page)["timed.py"]
    (tmp_path / "timed.py").write_text(code)
    (tmp_path / "bare.py").write_text(re.sub(r"(prompts|backbone|group_size|params|key): .*,", r"\1,", code))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Parsed("fit", [*GRPO, "--model.generator=timed.Timed", "--model.generator.path=a.txt"]).config
    assert config["fit"].model.init_args.generator.init_args.path == "a.txt"
    assert refused(*GRPO, "--model.generator=bare.Timed") == (
        "--model.generator: a method of `Generator` is missing, or lacks an argument or an annotation "
        "(docs/howto/own_engine.md)"
    )
    for name in ("timed", "bare"):
        sys.modules.pop(name, None)


def test_what_is_near_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rows.jsonl", "000000123456.jpg"):
        (tmp_path / name).touch()
    assert missing(tmp_path / "row.jsonl").endswith(f"; did you mean {tmp_path / 'rows.jsonl'}?")
    assert "did you mean" not in missing(tmp_path / "000000123457.jpg")  # another row's image
    monkeypatch.setattr("lit_vlaa.hints._MOST", 1)
    assert "did you mean" not in missing(tmp_path / "row.jsonl")


def test_a_name_that_is_none_of_a_few() -> None:
    # 2 of 3 letters in order, twice over the 6 of both: 0.67, enough among a few names and not among a command's flags.
    assert meant("stf", ("sft", "rl")) == "did you mean 'sft'?"
    assert nearest("stf", ("sft", "rl")) == ""
    assert meant("dpo", ("sft", "rl")) == "known: sft, rl"
    assert meant("dpo", ()) == "known: none"


def test_likeness_is_measured_in_one_place() -> None:
    root = Path(lit_vlaa.__file__).parents[1]
    sources = [path for name in ("lit_vlaa", "callbacks", "datamodules") for path in (root / name).rglob("*.py")]
    assert [path.name for path in sources if "difflib" in path.read_text(encoding="utf-8")] == ["hints.py"]
