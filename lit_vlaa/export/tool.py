"""`lit-vlaa export`: a checkpoint as a model folder in the Hub's layout."""

from __future__ import annotations

import math
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.export.run_files import config_beside
from lit_vlaa.flags import Flags, make_folder
from lit_vlaa.hints import missing

SEPARATOR = "::"
"""As `lit_vlaa.backbone.adapter_state.SEPARATOR`, which imports PyTorch."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: The checkpoint and the flags.

    Returns:
        0.

    Raises:
        UsageError: If a flag, the checkpoint or a file cannot be used.
    """
    given = flags().read(words)
    _check(given)
    from lit_vlaa.export.folder import export  # noqa: PLC0415 - imports transformers
    from lit_vlaa.export.model_card import without_folders  # noqa: PLC0415

    command = shlex.join(["lit-vlaa", "export", *(_public(word, without_folders) for word in words)])
    try:
        written = export(
            given.checkpoint,
            given.output_dir,
            config=given.config,
            dtype=given.dtype,
            scores=given.scores,
            name=given.name or given.output_dir.absolute().name,
            max_shard_gb=given.max_shard_gb,
            command=command,
        )
    except (ValueError, OSError) as error:
        raise UsageError([one_line(str(error))]) from error
    sys.stdout.write("\n".join(written) + "\n")
    return 0


def flags() -> Flags:
    """The command's flags."""
    parser = Flags(
        prog="lit-vlaa export",
        description="Writes a checkpoint's policy as a model folder in the Hub's layout: safetensors, tokenizer, image "
        "settings, a chat template that begins with the system prompt of training, generation settings, a model card, "
        "and the run's configuration. Adapters are added to the weights. The folder loads in transformers, and goes "
        "to the Hub with `hf upload`.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a .ckpt file, or a folder of sharded FSDP2")
    add("--output-dir", type=Path, required=True, help="folder to write; it must not be there, or be empty")
    add(
        "--config",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="configuration of the run (default: the config.yaml that it left beside the checkpoint)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="type of the stored weights (default: that of the base model, as its config.json has it)",
    )
    add(
        "--scores",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="evaluations for the card: a summary.json of BenchmarkEvaluation, or a log folder of `lit-vlaa test` "
        "(default: the run's own summary.json, if there is one)",
    )
    add("--name", help="title of the card (default: the folder's name)")
    add("--max-shard-gb", type=float, default=5.0, metavar="GB", help="most bytes of a weight file (default: 5)")
    return parser


def _check(given: Namespace) -> None:
    if not 0 < given.max_shard_gb < math.inf:
        raise UsageError([f"--max-shard-gb must be positive, got {given.max_shard_gb:g}"])
    path = Path(given.checkpoint.rpartition(SEPARATOR)[2])
    if not path.exists():
        raise UsageError([f"CHECKPOINT {path} {missing(path)}"])
    out = given.output_dir.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError([f"--output-dir {given.output_dir} is there already; name another, or remove it"])
    make_folder(out.parent)
    if not os.access(out.parent, os.W_OK):
        raise UsageError([f"--output-dir {given.output_dir}: the folder that it is to lie in cannot be written"])
    given.output_dir = out
    if not given.config:
        found = config_beside(path)
        if found is None:
            raise UsageError([f"there is no config.yaml beside {path}: name the run's configuration with --config"])
        given.config = [found]


def _public(word: str, shorten: Callable[[str], str]) -> str:
    """A word of the command as the card may show it."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{flag}{equals}{shorten(value)}" if value.startswith("/") or "::/" in value else word
