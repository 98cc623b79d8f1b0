"""The command's flags, and what it prints."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vlaa.checks import UsageError, one_line
from lit_vlaa.flags import Flags

if TYPE_CHECKING:
    from lit_vlaa.predict.policy import Policy

CUT_OFF = 1
"""Exit code where the answer was cut off by the limit of tokens."""


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: The model and the flags; those with a dot are of `lit-vlaa fit`.

    Returns:
        0, or 1 where a single answer was cut off.

    Raises:
        UsageError: If a flag, the model, a row or an image cannot be used.
    """
    given, rest = flags().read_some(words)
    _check(given)
    from lit_vlaa.predict.policy import load  # noqa: PLC0415 - imports PyTorch

    try:
        policy = load(given.model, given.config, rest, device=given.device)
        if given.rows is not None:
            return _rows(policy, given)
        return _one(policy, given)
    except (ValueError, OSError) as error:
        raise UsageError([one_line(str(error))]) from error


def flags() -> Flags:
    """The command's flags."""
    parser = Flags(
        prog="lit-vlaa predict",
        allow_abbrev=False,
        description="Answers one question on images, written as it comes, or a JSON Lines file of them, as the model "
        "was asked in training. On several GPUs, and on rows in the form of VLAA-Thinking, use `lit-vlaa predict "
        "--config ...`, Lightning's command. Flags of `lit-vlaa fit` are taken too (--model.sampling.temperature 0, "
        "--model.sampling.max_new_tokens, --data.prompt.system_prompt, ...).",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a .ckpt file, a folder of `lit-vlaa export`, another folder in the Hub's layout, a Hub id, or tiny",
    )
    add("--question", help="the question")
    add("--image", nargs="+", type=Path, default=[], metavar="FILE", help="images ahead of the question")
    add("--kind", default="", help="digit, mcq, math, iou or open_ended: adds the instruction of training")
    add(
        "--reasoning",
        choices=("shown", "hidden"),
        default="shown",
        help="whether a single response is written whole, or its answer alone (default: shown)",
    )
    add("--rows", type=Path, metavar="FILE", help="JSON Lines with question, image or images, and id or kind if wanted")
    add("--image-root", type=Path, default=Path(), help="folder that images of --rows are below (default: this one)")
    add("--output", type=Path, metavar="FILE", help="file for the answers to --rows; those that are there stay")
    add("--batch-size", type=int, default=16, metavar="N", help="rows that are answered together (default: 16)")
    add("--config", nargs="+", action="extend", type=Path, default=[], metavar="FILE", help="configuration of the run")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--seed", type=int, default=42, help="of what is drawn at a temperature above 0 (default: 42)")
    return parser


def _check(given: Namespace) -> None:
    problems = []
    if (given.question is None) == (given.rows is None):
        problems.append("give either --question, or --rows with a file of them")
    if given.rows is not None and given.output is None:
        problems.append("--rows needs --output, the file for the answers")
    if given.rows is not None and (given.image or given.kind or given.reasoning == "hidden"):
        problems.append("--image, --kind and --reasoning are for one --question; rows name theirs, and keep both parts")
    if given.rows is None and given.output is not None:
        problems.append("--output does nothing without --rows")
    if given.batch_size < 1:
        problems.append(f"--batch-size must be at least 1, got {given.batch_size}")
    if problems:
        raise UsageError(problems)


def _rows(policy: Policy, given: Namespace) -> int:
    from lit_vlaa.predict.rows import answer_rows, read_questions  # noqa: PLC0415

    questions = read_questions(given.rows)
    count = answer_rows(policy, questions, given.image_root, given.output, batch_size=given.batch_size, seed=given.seed)
    there = len(questions) - count
    sys.stdout.write(f"{count} answers in {given.output}{f', beside {there} that were there' if there else ''}\n")
    return 0


def _one(policy: Policy, given: Namespace) -> int:
    from lit_vlaa.generation import RolloutKey, TransformersGenerator  # noqa: PLC0415
    from lit_vlaa.predict.rows import image_of, question_of  # noqa: PLC0415
    from lit_vlaa.predict.streaming import AnswerAlone, Streamer  # noqa: PLC0415

    record = question_of(given.question, [str(path) for path in given.image], kind=given.kind, name="", origin="")
    images = [image_of(path, policy.max_image_pixels) for path in given.image]
    alone = AnswerAlone() if given.reasoning == "hidden" else None

    def write(text: str) -> None:
        sys.stdout.write(text if alone is None else alone.feed(text))
        sys.stdout.flush()

    engine = TransformersGenerator(streamer=Streamer(policy.backbone.processor.tokenizer, write))
    key = RolloutKey(seed=given.seed, step=0)
    ((completion,),) = engine.generate(
        policy.backbone, [policy.encode(record, images)], group_size=1, params=policy.sampling, key=key
    )
    sys.stdout.write(f"{'' if alone is None else alone.end()}\n")
    if completion.finish == "length":
        where = " within its reasoning" if alone is not None and alone.thinking else ""
        limit = policy.sampling.max_new_tokens
        sys.stderr.write(f"cut off{where} after {limit} tokens; --model.sampling.max_new_tokens allows more\n")
        return CUT_OFF
    return 0
