"""Every tool says in one line what was probably meant by a flag or a file, and does nothing before that."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_vlaa import cli
from lit_vlaa.checks import UsageError
from lit_vlaa.cli import main
from lit_vlaa.flags import Flags, make_folder

ROOT = Path(__file__).resolve().parents[2]
MISSPELT = {
    "data synthetic": "--output-dri",
    "data download": "--output-dri",
    "data convert": "--data-fiel",
    "data check": "--data-fiel",
    "data build": "--confg",
    "data select": "--data-fiel",
    "rewards check": "--verifers",
    "rewards serve": "--scorre",
    "eval compare": "--output-dri",
    "study run": "--confg",
    "study report": "--output-dri",
    "study plan": "--confg",
    "study slurm": "--confg",
    "study traces": "--nmaes",
    "study perplexity": "--responsez",
    "export": "--output-dri",
    "doctor": "--memory_gbb",
    "quickstart": "--output-dri",
}
MEANT = {
    "--output-dri": "--output-dir",
    "--data-fiel": "--data-file",
    "--confg": "--config",
    "--verifers": "--verifiers",
    "--scorre": "--scorer",
    "--nmaes": "--names",
    "--responsez": "--responses",
    "--memory_gbb": "--memory-gb",
}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    return line.removeprefix("lit-vlaa: error: ")


@pytest.mark.parametrize("command", cli.TOOLS)
def test_a_misspelt_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where another flag is missing by it."""
    flag = MISSPELT[command]
    line = refused(capsys, *command.split(), flag, "x")
    assert line.startswith(f"unrecognized arguments: {flag.replace('_', '-')}")
    assert line.endswith(f"; did you mean {MEANT[flag]}?")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["data", "build", "--output-dir=out", "--config=FILE"], "--config "),
        (["study", "plan", "--config=FILE"], "--config "),
        (["doctor", "--config=FILE"], "--config "),
        (["data", "check", "--data-file=FILE"], "--data-file "),
        (["data", "convert", "--output-dir=out", "--data-file=FILE"], "--data-file "),
        (["data", "download", "--output-dir=out", "--coco=FILE"], "--coco "),
        (["rewards", "check", "--data=FILE"], "--data "),
        (["eval", "compare", "FILE", "FILE"], ""),
        (["study", "traces", "FILE"], ""),
        (["study", "perplexity", "--output=out", "--config=none", "--responses=FILE"], ""),
        (["export", "FILE", "--output-dir=out"], "CHECKPOINT "),
        (["predict", "tiny", "--output=out", "--rows=FILE"], "--rows "),
        (["predict", "tiny", "--question=Which?", "--image=FILE"], "--image "),
        (["predict", "FILE.ckpt", "--question=Which?"], "MODEL "),
    ],
    ids=lambda value: "-".join(word for word in value if word[0] != "-") if isinstance(value, list) else "",
)
def test_a_file_that_is_not_there(
    words: list[str], flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit-vlaa"])
    for name in ("given.txt", "given.txt.ckpt"):
        Path(name).touch()
    line = refused(capsys, *(word.replace("FILE", "givne.txt") for word in words))
    name = "givne.txt.ckpt" if "FILE.ckpt" in words else "givne.txt"
    meant = name.replace("givne", "given")
    assert line.startswith(f"{flag}{name} does not exist; seen from {tmp_path}; did you mean {meant}?")
    assert {path.name for path in tmp_path.iterdir()} == {"given.txt", "given.txt.ckpt"}


@pytest.mark.parametrize(
    "words",
    [
        ["data", "synthetic"],
        ["data", "convert", "--data-file=file"],
        ["data", "download", "--dry-run"],
        ["data", "build", "--config=file"],
        ["eval", "compare", "file", "file"],
        ["study", "traces", "file"],
        ["data", "check", "--data-file=file"],
        ["data", "select", "--data-file=file"],
        ["study", "slurm", "--config=file"],
        ["study", "report", "."],
        ["export", "file"],
        ["quickstart"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_an_output_folder_that_cannot_be_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert refused(capsys, *words, "--output-dir=file/below") == (
        "--output-dir file/below: file is a file; name a folder"
    )
    assert refused(capsys, *words, f"--output-dir=new/{'n' * 256}").endswith(
        "n: a name of at most 231 bytes is needed, not of 256"
    )
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "tiny", "--rows=file"],
        ["rewards", "check", "--data=file"],
        ["study", "perplexity", "--responses=file", "--part=response", "--config=file"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_an_output_file_that_cannot_be_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert refused(capsys, *words, "--output=.") == "--output . is a folder; name a file in it"
    assert refused(capsys, *words, "--output=file/below") == "--output file/below: file is a file; name a folder"


def test_folders_that_are_read_need_not_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic = ["data", "synthetic", "--output-dir=data", "--sft-count=2", "--grpo-count=1", "--test-count=1"]
    assert main([*synthetic, "--progress=false"]) == 0
    monkeypatch.setattr("lit_vlaa.output_paths.os.access", lambda *_: False)
    assert main([*synthetic, "--progress=false"]) == 0
    assert refused(capsys, "data", "convert", "--data-file=data/VLAA-Thinking-SFT.json", "--output-dir=data") == (
        "--output-dir data cannot be written to; name another folder"
    )
    given = Flags(prog="x")
    given.add_argument("--output-dir", type=Path)
    given.add_argument("--dry-run", action="store_true")
    assert given.read(["--output-dir=data", "--dry-run"]).output_dir == Path("data")
    with pytest.raises(UsageError, match="cannot be written to"):
        given.read(["--output-dir=data"])


@pytest.mark.parametrize(
    ("key", "misspelt", "line"),
    [
        ("caption:", "captoin:", "captoin.endpoint.base_url: there is no such option; did you mean caption.endpoint."),
        ("  max_words:", "  max_wrods:", "distil.max_wrods: there is no such option; did you mean distil.max_words?"),
        ("  - adapter:", "  - adpater:", "sources.adpater: there is no such option; did you mean sources.adapter?"),
    ],
    ids=["step", "setting", "in-a-list"],
)
def test_a_misspelt_key_of_a_build(
    key: str, misspelt: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "configs" / "data" / "build.yaml").read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_text(text.replace(key, misspelt), encoding="utf-8")
    told = refused(capsys, "data", "build", f"--config={tmp_path / 'own.yaml'}", f"--output-dir={tmp_path / 'out'}")
    assert told.startswith(f"--config {tmp_path / 'own.yaml'}: {line}")


def parser() -> Flags:
    made = Flags(prog="lit-vlaa pack")
    made.add_argument("box")
    made.add_argument("--item-count", type=int, required=True)
    made.add_argument("--rows", type=int)
    return made


def told(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parser().read_beside(words)
    (line,) = caught.value.problems
    return line


def test_flags_that_another_command_takes_are_handed_back() -> None:
    words = ["--seed_everything", "3", "a", "--item_count=2", "--model.optim.lr=1", "--rows", "7"]
    given, rest = parser().read_beside(words)
    assert (given.box, given.item_count, given.rows) == ("3", 2, 7)  # argparse cannot know whose value it is
    assert rest == ["--seed_everything", "a", "--model.optim.lr=1"]
    assert told("a", "--item-count=1", "--rowz=3") == "unrecognized arguments: --rowz=3; did you mean --rows?"


def test_one_line_with_what_was_meant() -> None:
    assert told() == "needed: box, --item-count"
    assert told("a", "--itme-count=3") == "unrecognized arguments: --itme-count=3; did you mean --item-count?"
    assert told("a", "--item-count=few") == "--item-count: invalid int value: 'few'"
    for words, line in (
        (["--bogus", "1"], "unrecognized arguments: --bogus 1; lit-vlaa pack --help shows its flags"),
        (["b"], "unrecognized arguments: b; flags begin with --, and lit-vlaa pack --help shows them"),
    ):
        with pytest.raises(UsageError, match=line):
            parser().read(["a", "--item-count=1", *words])


def test_an_output_folder_is_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_words_behind_two_dashes_are_no_flags() -> None:
    parser = Flags(prog="x")
    parser.add_argument("--some-flag")
    parser.add_argument("folder")
    given = parser.read(["--some_flag", "a_b", "--", "--my_folder"])
    assert (given.some_flag, given.folder) == ("a_b", "--my_folder")
