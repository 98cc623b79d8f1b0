"""The steps of a build one after the other, each only if it is not done."""

from __future__ import annotations

import heapq
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lit_vlaa.checks import RunStoppedError, UsageError
from lit_vlaa.endpoints.completions import Usage
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.pipeline.asking import ask_rows
from lit_vlaa.pipeline.config import STEPS, BuildConfig
from lit_vlaa.pipeline.finish import curate
from lit_vlaa.pipeline.prompt_files import PromptFile, load_prompt
from lit_vlaa.pipeline.rows import Done, Row, StepFiles, fingerprint, lines, write_lines
from lit_vlaa.pipeline.steps import found_right


class Build:
    """One build, or one shard of it.

    Args:
        config: The build.
        base: Folder of the configuration.
        output: Folder for what is made.
        shard: (i, n) of the shard, i from 1; None for the whole.
        limit: Most rows of the sources; None for all.

    Raises:
        UsageError: If a prompt cannot be used.
        ValueError: If an endpoint's setting cannot work.
    """

    def __init__(
        self, config: BuildConfig, *, base: Path, output: Path, shard: tuple[int, int] | None, limit: int | None
    ) -> None:
        self.config = config
        self.base = base
        self.output = output
        self.shard = shard
        self.limit = limit
        self.folder = output if shard is None else _shard_folder(output, shard)
        self.image_root = (base / config.image_root).resolve()
        self.cache = ReplyCache(output / "cache" if config.cache_dir is None else base / config.cache_dir)
        self.prompts: dict[str, PromptFile] = {
            step: load_prompt(base / settings.prompt, step) for step, settings in config.asking().items()
        }
        for step, settings in config.asking().items():
            settings.endpoint.client(f"{step}.endpoint.base_url")

    def files(self, step: str) -> StepFiles:
        """The files of a step."""
        return StepFiles(self.folder / "steps", step)

    def run(self, only: str | None = None) -> None:
        """Runs the steps.

        Args:
            only: The step to run alone; None for all that are not done.

        Raises:
            UsageError: If the step before `only` is not done, or the replies cannot be kept.
            RunStoppedError: If an endpoint is lost, replies are missing, or a step rejects everything.
            ValueError: If a source cannot be read or a key is missing.
        """
        steps = [only] if only else [step for step in STEPS if step != "curate" or self.shard is None]
        for step in steps:
            if step in self.prompts:
                self.config.asking()[step].endpoint.client(f"{step}.endpoint.base_url").key()
        try:
            self.cache.prepare()
        except OSError as error:
            raise UsageError([f"cache_dir {self.cache.folder} cannot be written: {error}"]) from error
        for step in steps:
            wanted = self.fingerprint(step)
            done = self.files(step).done()
            known = only is None and step != "curate" and done is not None and done.fingerprint == wanted
            if known and done is not None and not self._fruitless(done):
                _say(f"{step}: done before, {done.rows_out} of {done.rows_in} rows")
            elif step == "curate":
                for told in curate(self, wanted):
                    _say(told)
            else:
                self._step(step, wanted)

    def fingerprint(self, step: str) -> str:
        """What tells whether a step must run again.

        Raises:
            UsageError: If the step before it is not done.
        """
        if step == "metadata":
            from lit_vlaa.pipeline.metadata import source_state  # noqa: PLC0415 (datamodules take seconds to import)

            states = [source_state(source, self.base) for source in self.config.sources]
            source: object = [states, self.shard or (1, 1), self.limit]
        else:
            source = self._before(step).output_sha256
        prompt = self.prompts[step].sha256 if step in self.prompts else ""
        return fingerprint(step, self.config.settings(step), prompt, source)

    def merge(self) -> None:
        """Puts the steps of all shards together, as if there had been one run.

        Raises:
            UsageError: If there are no shards, or one of them is not finished or of another configuration.
            RunStoppedError: If a step rejected all rows of all shards.
        """
        shards = self._shards()
        for step in STEPS[:-1]:
            parts = [shard.files(step) for shard in shards]
            dones = [part.done() for part in parts]
            for shard, done in zip(shards, dones, strict=True):
                if done is None or done.fingerprint != shard.fingerprint(step):
                    index, count = shard.shard or (1, 1)
                    why = "is not done" if done is None else "is of another configuration, source or --limit"
                    raise UsageError(
                        [f"shard {index}/{count}: step {step} {why}; run --shard {index}/{count} again, then --merge"]
                    )
            found = [done for done in dones if done is not None]
            with self.files(step).writing(self.fingerprint(step)) as writer:
                for row in heapq.merge(*(part.read() for part in parts), key=lambda row: row.number):
                    writer.keep(row)
                for line in heapq.merge(*(lines(part.rejects) for part in parts), key=lambda line: line["number"]):
                    writer.copy_reject(line)
                for done in found:
                    writer.notes.update(done.notes)
                if step in self.prompts:
                    # By question, as shards may have shared a reply.
                    counted = {line["question"]: line["tokens"] for part in parts for line in lines(part.counted)}
                    asked = sum(done.usage["asked"] for done in found if done.usage is not None)
                    writer.usage = Usage.of(counted, asked=asked)
            self._stop_if_fruitless(step)

    def _shards(self) -> list[Build]:
        """All shards of the one count of which every folder is there."""
        counts = Counter(
            int(folder.name.partition("-of-")[2])
            for folder in (self.output / "shards").glob("*-of-*")
            if re.fullmatch(r"\d+-of-\d+", folder.name)
        )
        whole = [count for count, found in counts.items() if found == count]
        if len(whole) != 1:
            there = ", ".join(f"{found} of {count}" for count, found in sorted(counts.items())) or "none"
            what = "remove those that are not wanted" if len(whole) > 1 else "run those that are missing"
            raise UsageError([f"--merge needs all shards of one N in {self.output / 'shards'}; there: {there}; {what}"])
        return [
            Build(self.config, base=self.base, output=self.output, shard=(index, whole[0]), limit=self.limit)
            for index in range(1, whole[0] + 1)
        ]

    def _before(self, step: str) -> Done:
        earlier = STEPS[STEPS.index(step) - 1]
        done = self.files(earlier).done()
        if done is None:
            raise UsageError(
                [f"step {step} needs step {earlier}, which is not done in {self.folder}; run without --only"]
            )
        return done

    def _step(self, step: str, wanted: str) -> None:
        files = self.files(step)
        total = None if step == "metadata" else self._before(step).rows_out
        with (
            tqdm(desc=step, total=total, unit="row", file=sys.stderr, disable=None) as bar,
            files.writing(wanted) as writer,
        ):
            if step == "metadata":
                from lit_vlaa.pipeline.metadata import read_metadata  # noqa: PLC0415

                shard = self.shard or (1, 1)
                read_metadata(self.config, writer, base=self.base, shard=shard, limit=self.limit, tick=bar.update)
            else:
                counted = ask_rows(
                    step,
                    self._input(step),
                    writer,
                    config=self.config,
                    prompt=self.prompts[step],
                    image_root=self.image_root,
                    cache=self.cache,
                    share=1.0 if self.shard is None else 1 / self.shard[1],
                    tick=bar.update,
                )
                if self.shard is not None:
                    named = ({"question": name, "tokens": counted[name]} for name in sorted(counted))
                    write_lines(files.counted, named)
        done = files.done()
        assert done is not None  # noqa: S101  # it has just been written
        asked = (
            "" if done.usage is None else f"; {done.usage['asked']} of {done.usage['replies']} replies asked for now"
        )
        _say(f"{step}: {done.rows_out} of {done.rows_in} rows{asked}{_why(done)}")
        self._stop_if_fruitless(step)

    def _input(self, step: str) -> Iterator[Row]:
        """The rows of the step before; for `verify`, those that a rule finds right say so."""
        before = self.files(STEPS[STEPS.index(step) - 1])
        if step != "verify" or not self.config.verify.rules_first:
            return before.read()
        right = found_right(before.read(), min_iou=self.config.verify.min_iou)
        return (replace(row, verified_by="rule") if row.number in right else row for row in before.read())

    def _fruitless(self, done: Done) -> bool:
        """Whether a step is finished for nothing; of a shard, whose rows may be few, nobody can tell."""
        return self.shard is None and done.rows_in > 0 and not done.rows_out

    def _stop_if_fruitless(self, step: str) -> None:
        done = self.files(step).done()
        if done is not None and self._fruitless(done):
            rejects = self.files(step).rejects
            first = next(lines(rejects))
            wrong = (
                f"sources, or image_root {self.image_root}," if step == "metadata" else f"{step}'s prompt or endpoint"
            )
            raise RunStoppedError(
                f"step {step} rejected all {done.rows_in} rows (most often: {_most(done)}; the first: "
                f"{first['detail'] or first['reason']}); see {rejects}, and set {wrong} right"
            )


def _shard_folder(output: Path, shard: tuple[int, int]) -> Path:
    return output / "shards" / f"{shard[0]}-of-{shard[1]}"


def _most(done: Done) -> str:
    """The most frequent reason of a step's rejects."""
    return max(done.rejected, key=lambda reason: done.rejected[reason])


def _why(done: Done) -> str:
    return f"; rejected most often: {_most(done)} ({done.rejected[_most(done)]})" if done.rejected else ""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
