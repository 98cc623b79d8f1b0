"""`lit-vlaa data build`: six steps from images, questions and answers to splits that `lit-vlaa fit` reads."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_vlaa.checks import UsageError
from lit_vlaa.flags import Flags
from lit_vlaa.pipeline.config import STEPS, load
from lit_vlaa.pipeline.dry_run import plan
from lit_vlaa.pipeline.folder import locked, refuse_foreign
from lit_vlaa.pipeline.interrupts import InterruptedBuildError
from lit_vlaa.pipeline.run import Build


def run(words: Sequence[str]) -> int:
    """Runs the steps that are not done yet.

    Args:
        words: Flags of the command.

    Returns:
        The exit code; 128 and the signal's number after Ctrl-C or SIGTERM.

    Raises:
        UsageError: If something in the configuration or the sources cannot work.
        RunStoppedError: If an endpoint is lost, replies are missing, or a step rejects everything.
    """
    parser = Flags(
        prog="lit-vlaa data build",
        description="Builds SFT and RL splits with reasoning traces from images, questions and answers: metadata, "
        "caption, distil, rewrite, verify, curate. Each step asks a model of its own behind an OpenAI-compatible "
        "endpoint. A step that is done is not run again unless its input, settings or prompt changed; replies are "
        "kept on disk, so that a run that was killed goes on where it was and asks nothing twice.",
    )
    parser.add_argument("--config", type=Path, required=True, help="the file that describes the build (YAML)")
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for splits, data card, steps and replies"
    )
    parser.add_argument("--only", choices=STEPS, help="run this step alone, even if it is done, on what is there")
    parser.add_argument("--shard", metavar="I/N", help="run steps 1 to 5 on the I-th of N parts of the rows, I from 1")
    parser.add_argument("--merge", action="store_true", help="put the finished shards together and run step 6")
    parser.add_argument("--limit", type=int, metavar="ROWS", help="take so many rows of the sources at most")
    parser.add_argument(
        "--dry-run", action="store_true", help="estimate requests, tokens and cost of each step; ask nothing"
    )
    given = parser.read(words)
    shard = None if given.shard is None else _shard(given.shard)
    if shard is not None and (given.merge or given.only == "curate"):
        raise UsageError([f"--shard does not go with {'--merge' if given.merge else '--only curate'}"])
    if given.merge and given.only:
        raise UsageError(["--merge does not go with --only"])
    if given.limit is not None and given.limit < 1:
        raise UsageError([f"--limit must be at least 1, got {given.limit}"])
    if given.dry_run and (given.merge or given.only):
        raise UsageError([f"--dry-run does not go with {'--merge' if given.merge else '--only'}"])
    try:
        base = given.config.resolve().parent
        build = Build(load(given.config), base=base, output=given.output_dir, shard=shard, limit=given.limit)
        refuse_foreign(given.output_dir)
        if given.dry_run:
            sys.stdout.writelines(f"{line}\n" for line in plan(build))
            return 0
        with locked(build.folder):
            if given.merge:
                build.merge()
            build.run("curate" if given.merge else given.only)
    except (ValueError, OSError) as error:
        raise UsageError([" ".join(str(error).split())]) from error
    except (InterruptedBuildError, KeyboardInterrupt) as stop:
        sys.stderr.write(
            "lit-vlaa: interrupted; run the same command again, nothing that was answered is asked twice\n"
        )
        return 128 + (stop.signum if isinstance(stop, InterruptedBuildError) else signal.SIGINT)
    return 0


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError([f"--shard must be I/N with I from 1 to N, such as 3/8, got {text!r}"])
    return int(match[1]), int(match[2])
