"""The command's flags, and what it prints."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vlaa.checks import UsageError, is_out_of_memory, one_line
from lit_vlaa.flags import Flags
from lit_vlaa.study.document import visible

if TYPE_CHECKING:
    from lit_vlaa.predict.policy import Settings

_LESS = (
    "what takes less: a smaller --batch-size, --model.sampling.max_new_tokens or --model.backbone.max_pixels, or "
    "--device cpu"
)
NO_ANSWER = 1
"""Exit code where the answer was cut off by the limit of tokens, or the response ended within its reasoning."""


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: The model and the flags; those with a dot are of `lit-vlaa fit`.

    Returns:
        0, or 1 where a single answer was cut off, or hidden reasoning is all there is.

    Raises:
        UsageError: If a flag, the model, a row or an image cannot be used.
    """
    given, rest = flags().read_some(words)
    _check(given)
    from lit_vlaa.predict.policy import read_settings  # noqa: PLC0415 - imports PyTorch

    try:
        settings = read_settings(given.model, given.config, rest)
        return _one(settings, given) if given.rows is None else _rows(settings, given)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError([one_line(str(error))]) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        kept = "answers so far are kept; " if given.rows is not None else ""
        raise UsageError([f"{one_line(str(error)).rstrip('.')}; {kept}{_LESS}"]) from error


def flags() -> Flags:
    """The command's flags."""
    parser = Flags(
        prog="lit-vlaa predict",
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
    add(
        "--image",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FILE",
        help="images ahead of the question",
    )
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


def _rows(settings: Settings, given: Namespace) -> int:
    from lit_vlaa.predict.answers import answers_in  # noqa: PLC0415
    from lit_vlaa.predict.policy import load  # noqa: PLC0415
    from lit_vlaa.predict.rows import answer_rows, check_images, read_questions  # noqa: PLC0415

    questions = read_questions(given.rows)
    if kinds := settings.without_line(questions):
        names = visible(", ".join(kinds))
        sys.stderr.write(f"no line stands behind questions of kind {names}; --data.prompt.instructions adds one\n")
    check_images(questions, given.image_root, settings.max_image_pixels)
    with answers_in(given.output, given.rows) as answers:
        policy = load(settings, device=given.device)
        options = {"batch_size": given.batch_size, "seed": given.seed}
        count = answer_rows(policy, questions, given.image_root, answers, **options)
    there = len(questions) - count
    sys.stdout.write(f"{count} answers in {given.output}{f', beside {there} that were there' if there else ''}\n")
    return 0


def _one(settings: Settings, given: Namespace) -> int:
    from lit_vlaa.generation import RolloutKey, TransformersGenerator  # noqa: PLC0415
    from lit_vlaa.predict.policy import load  # noqa: PLC0415
    from lit_vlaa.predict.rows import image_of, question_of  # noqa: PLC0415
    from lit_vlaa.predict.streaming import AnswerAlone, Streamer  # noqa: PLC0415
    from lit_vlaa.types import KINDS  # noqa: PLC0415

    places = [str(path) for path in given.image]
    record = question_of(given.question, places, kind=given.kind, name="", origin="--question")
    if settings.without_line([record]):
        raise ValueError(f"--kind {given.kind}: no line stands behind such questions; use {', '.join(KINDS)}")
    images = [image_of(path, settings.max_image_pixels) for path in given.image]
    policy = load(settings, device=given.device)
    alone = AnswerAlone() if given.reasoning == "hidden" else None

    def write(text: str) -> None:
        _write(text if alone is None else alone.feed(text))

    engine = TransformersGenerator(streamer=Streamer(policy.backbone.processor.tokenizer, write))
    key = RolloutKey(seed=given.seed, step=0)
    ((completion,),) = engine.generate(
        policy.backbone, [policy.encode(record, images)], group_size=1, params=settings.sampling, key=key
    )
    _write(f"{'' if alone is None else alone.end()}\n")
    hidden = alone is not None and alone.thinking
    if completion.finish == "length":
        where = " within its reasoning" if hidden else ""
        limit = settings.sampling.max_new_tokens
        sys.stderr.write(f"cut off{where} after {limit} tokens; --model.sampling.max_new_tokens allows more\n")
    elif hidden:
        sys.stderr.write("the response ended within its reasoning, without an answer; --reasoning shown writes it\n")
    return NO_ANSWER if completion.finish == "length" or hidden else 0


def _write(text: str) -> None:
    """Shows what the model wrote, and has the terminal obey none of it."""
    coding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(visible(text).encode(coding, "backslashreplace").decode(coding))
    sys.stdout.flush()
