"""`lit-vlaa study perplexity`: how likely saved responses are under the model that a configuration starts from."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.flags import Flags
from lit_vlaa.study.responses import ScoredResponse, read_responses
from lit_vlaa.whole_files import replacing

if TYPE_CHECKING:
    from lit_vlaa.perplexity_module import Model

_SET = "test"


def run(words: Sequence[str]) -> int:
    """Scores responses to the test rows of a configuration.

    Args:
        words: The arguments of the command; those that are not its own go to `lit-vlaa test`.

    Returns:
        0.

    Raises:
        UsageError: If an argument, the configuration or a file cannot work.
    """
    given, rest = _parser().read_beside(words)
    flags = [f"--config={path}" for path in given.config]
    flags += rest
    if given.init_from is not None:
        flags.append(f"--model.init_args.init_from={given.init_from}")
    if given.batch_size is not None:
        flags.append(f"--data.init_args.eval_batch_size={given.batch_size}")
    try:
        responses = read_responses(given.responses)
        config = parsed(flags)
        from lit_vlaa.study.perplexity_run import described, score  # noqa: PLC0415 - imports PyTorch

        model, data = described(config)
        skipped: Counter[str] = Counter()
        wanted = _wanted(responses, skipped)
        file = PerplexityFile(given.output, _settings(given.part, responses, model, config))
        left = {name: row for name, row in wanted.items() if (row.set, name) not in file.rows}
        with file:
            if left:
                skipped += score(model, data, left, part=given.part, write=file.append)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise UsageError([one_line(str(error))]) from error
    _report(file, len(wanted) - len(left), skipped)
    return 0


def _parser() -> Flags:
    parser = Flags(
        prog="lit-vlaa study perplexity",
        description="Writes for each response the sum of -log p over its tokens under the model that a configuration "
        "starts from, as it reads the row's image and question. Takes the flags of `lit-vlaa test` too; "
        "model, prompt, pixels and files come from --config. Interrupted, the same command goes on.",
    )
    parser.add_argument("--responses", type=Path, required=True, help="responses.jsonl of an evaluation, or its folder")
    parser.add_argument("--output", type=Path, required=True, help="file to write: {set, id, nll, tokens} a line")
    parser.add_argument(
        "--config", type=Path, action="append", required=True, help="configuration of a stage; several are laid over"
    )
    parser.add_argument("--init-from", help="checkpoint with the weights; default: the configuration's, if it has one")
    parser.add_argument(
        "--part", choices=("response", "thinking"), default="response", help="tokens that count (default: response)"
    )
    parser.add_argument("--batch-size", type=int, help="rows that are read and written together; default: the data's")
    return parser


def parsed(flags: Sequence[str]) -> Any:
    """What `lit-vlaa test` would make of flags.

    Raises:
        UsageError: If it would refuse them.
    """
    from lit_vlaa.lightning_cli import Parsed  # noqa: PLC0415 - imports Lightning

    before = sys.argv
    # Lightning warns of arguments that it is given beside those of the process.
    sys.argv = [before[0], "test", *flags]
    try:
        return Parsed("test").config["test"]
    finally:
        sys.argv = before


def _wanted(responses: Sequence[ScoredResponse], skipped: Counter[str]) -> dict[str, ScoredResponse]:
    """The responses to rows of the data module, by id."""
    wanted: dict[str, ScoredResponse] = {}
    for row in responses:
        if row.set != _SET:
            skipped["they are no responses to the test rows, but of another set"] += 1
        elif row.id in wanted:
            skipped["there is another response to the same row before"] += 1
        else:
            wanted[row.id] = row
    return wanted


def _settings(part: str, responses: Sequence[ScoredResponse], model: Model, config: Any) -> dict[str, Any]:
    """What the numbers depend on; a checkpoint is known by its path, size and time."""
    rows = [(row.set, row.id, row.response, row.finish) for row in responses]
    data = config["data"]["init_args"]
    checkpoint = None if model.init_from is None else Path(model.init_from)
    stat = checkpoint.stat() if checkpoint is not None and checkpoint.exists() else None
    return {
        "responses": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "part": part,
        "backbone": {name: value for name, value in asdict(model.backbone).items() if name != "logprob_chunk"},
        "init_from": None
        if model.init_from is None
        else [model.init_from, *([stat.st_size, stat.st_mtime_ns] if stat else [])],
        "data": {
            name: str(data[name]) for name in ("test_file", "image_root", "prompt", "kinds", "sources") if name in data
        },
    }


class PerplexityFile:
    """Lines on disk, written as they come; `<output>.settings.json` beside them says what they depend on.

    Args:
        path: The file; what a killed run left of its last line is cut off.
        settings: JSON can carry them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], tuple[float, int]] = {}
        """(nll, tokens) by (set, id)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        note = path.with_name(f"{path.name}.settings.json")
        settings = json.loads(json.dumps(settings))
        if path.exists():
            self._check(note, settings)
        else:
            with replacing(note) as draft:
                draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        self._file = path.open("r+b" if path.exists() else "w+b")
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:end].splitlines(), 1):
            self._take(line, number)
        self._file.seek(end)
        self._file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, row: ScoredResponse, nll: float, tokens: int) -> None:
        """Adds a row and hands it to the operating system."""
        self.rows[row.set, row.id] = (nll, tokens)
        line = {"set": row.set, "id": row.id, "nll": nll, "tokens": tokens}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _check(self, note: Path, settings: Mapping[str, Any]) -> None:
        """Refuses to go on with numbers of another kind.

        Raises:
            ValueError: If it is, or may be, one.
        """
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            other = sorted(name for name in settings if found.get(name) != settings[name])
        except (OSError, ValueError, AttributeError):
            other = ["unknown settings"]
        if other:
            raise ValueError(
                f"--output {self.path} holds perplexities made with other {', '.join(other)}; delete it or give another"
            )

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            key, value = (str(row["set"]), str(row["id"])), (float(row["nll"]), int(row["tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--output {self.path}:{number}: not a line of perplexities; delete the file") from error
        self.rows[key] = value


def _report(file: PerplexityFile, before: int, skipped: Mapping[str, int]) -> None:
    lines = [f"{len(file.rows)} rows in {file.path}" + (f", {before} of them from before" if before else "")]
    nll, tokens = (sum(column) for column in zip(*file.rows.values(), strict=True)) if file.rows else (0.0, 0)
    if tokens:
        mean = nll / tokens
        lines.append(f"{mean:.4f} nats a token over {tokens} tokens, perplexity {math.exp(min(mean, 700)):.4g}")
    lines += [f"{count} left out: {reason}" for reason, count in sorted(skipped.items())]
    sys.stdout.write("\n".join(lines) + "\n")
