"""`lit-vlaa data select`: smaller SFT sets out of a large one, by perplexity, by aha cues, or at random."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from lightning_utilities.core.rank_zero import rank_zero_only

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.flags import Flags, make_folder
from lit_vlaa.selection.choice import Aha, Mean, Order
from lit_vlaa.traces import Matching

_INTERRUPTED = 130
_MODELS_ONLY = ("order", "mean", "part", "shard", "batch_size")


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: Its flags; those with a dot are of `lit-vlaa fit`.

    Returns:
        0; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UsageError: If a flag, a file or a model cannot be used.
    """
    given, rest = flags().read_some(words)
    _check(given)
    from lit_vlaa.selection.rows import find_root  # noqa: PLC0415 - imports PyTorch
    from lit_vlaa.selection.run import read, select  # noqa: PLC0415
    from lit_vlaa.selection.scoring import SIGTERM_EXIT  # noqa: PLC0415

    try:
        given.image_root = find_root(given.data_file, given.image_root)
        config = read(given, rest)
        make_folder(given.output_dir)
        select(given, config)
    except (ValueError, OSError) as error:
        raise UsageError([one_line(str(error))], local=True) from error
    except KeyboardInterrupt as stop:
        if not getattr(rank_zero_only, "rank", 0):
            sys.stderr.write(
                "lit-vlaa: interrupted: nothing was chosen; the same command goes on with what is scored\n"
            )
        return SIGTERM_EXIT if stop.args == (SIGTERM_EXIT,) else _INTERRUPTED
    return 0


def flags() -> Flags:
    """The command's own flags."""
    parser = Flags(
        prog="lit-vlaa data select",
        description="Keeps the rows whose responses have the highest perplexity, averaged over models: the paper's "
        "25K, 10K and 5K, each a part of the larger. Or the lowest, or a random subset; of all rows, or of those with "
        "or without aha cues. Interrupted, the same command goes on where it was. Flags of `lit-vlaa fit` "
        "(--trainer.precision, --model.backbone.dtype, --data.on_bad_record, ...) are taken too.",
    )
    add = parser.add_argument
    add("--data-file", type=Path, required=True, help="rows with responses: a JSON array, JSON Lines or shards")
    add("--image-root", type=Path, help="folder that image paths start from; not needed where they lie in shards")
    add("--output-dir", type=Path, required=True, help="folder for the kept rows, the scores and the report")
    add(
        "--models",
        nargs="+",
        default=[],
        metavar="PATH",
        help="what scores: Hub ids, directories in the Hub's layout, `tiny`, or checkpoints (.ckpt) of the "
        "configuration's backbone",
    )
    add("--keep", nargs="+", type=int, metavar="N", help="rows to keep; several give a file each. Default: all")
    add("--order", choices=get_args(Order), help="which perplexities to keep (default: highest)")
    add("--mean", choices=get_args(Mean), help="what is averaged over the models (default: perplexity)")
    add("--part", choices=("response", "thinking"), help="tokens that count (default: response)")
    add("--random", action="store_true", help="keep rows drawn by --seed, as a control; needs no model")
    add("--seed", type=int, help="of --random (default: 42)")
    add("--aha", choices=get_args(Aha), help="choose only from rows with, or without, an aha cue in their response")
    add("--matching", choices=get_args(Matching), help="where a cue of --aha counts (default: substring, as the paper)")
    add("--name", help="how the files are called before -<N>; default: as the data file, without its number of rows")
    add("--config", nargs="+", action="extend", default=[], metavar="FILE", help="configuration of the SFT stage")
    add("--shard", type=_shard, metavar="I/N", help="score only the I-th of N parts of the rows, and choose nothing")
    add("--accelerator", help="as --trainer.accelerator: auto, cpu or gpu; default: of --config")
    add("--devices", help="as --trainer.devices: how many, or which; default: of --config. Each holds the whole model")
    add("--batch-size", type=int, metavar="N", help="rows that are read and written together (default: 16)")
    return parser


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, as in 2/4; got {text}")
    return int(found[1]), int(found[2])


def _check(given: Any) -> None:
    """Refuses flags that would do nothing, and numbers out of range."""
    problems = [
        f"--{name.replace('_', '-')} does nothing without --models"
        for name in _MODELS_ONLY
        if getattr(given, name) is not None and not given.models
    ]
    for name, needed in (("seed", "random"), ("matching", "aha")):
        if getattr(given, name) is not None and not getattr(given, needed):
            problems.append(f"--{name} does nothing without --{needed}")
    if given.random and given.models:
        problems.append("--random does not look at perplexities; leave out --models")
    if not (given.random or given.models or given.aha):
        problems.append("nothing to choose by: give --models, --random or --aha")
    if given.keep and not (given.random or given.models):
        problems.append("--keep does not say which rows: give --models, or --random")
    if twice := [model for model, count in Counter(given.models).items() if count > 1]:
        problems.append(f"--models names {twice[0]} twice")
    if given.keep and min(given.keep) < 1:
        problems.append(f"--keep must be at least 1, got {min(given.keep)}")
    if given.batch_size is not None and given.batch_size < 1:
        problems.append(f"--batch-size must be at least 1, got {given.batch_size}")
    if given.name is not None and (not given.name.strip() or Path(given.name).name != given.name):
        problems.append(f"--name {given.name!r} is no file name")
    if problems:
        raise UsageError(problems)
