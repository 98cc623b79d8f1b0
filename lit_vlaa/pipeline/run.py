"""The steps of a build one after the other, each only if it is not done."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lit_vlaa.checks import RunStoppedError, UsageError
from lit_vlaa.endpoints.completions import Usage
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.pipeline import report
from lit_vlaa.pipeline.asking import ask_rows
from lit_vlaa.pipeline.config import STEPS, BuildConfig
from lit_vlaa.pipeline.curate import Split, grpo_line, place, sft_line, split_paths
from lit_vlaa.pipeline.prompt_files import PromptFile, load_prompt
from lit_vlaa.pipeline.rows import Done, Row, StepFiles, file_digest, fingerprint, lines, write_lines, write_text
from lit_vlaa.pipeline.steps import found_right

_SPLIT_FILE = re.compile(r"VLAA-Thinking-(?:SFT|GRPO)-\d+K?\.json")


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
            if only is None and step != "curate" and done is not None and done.fingerprint == wanted:
                _say(f"{step}: done before, {done.rows_out} of {done.rows_in} rows")
                continue
            self._curate(wanted) if step == "curate" else self._step(step, wanted)

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
                usages = [done.usage for done in found if done.usage is not None]
                if usages:
                    writer.usage = Usage(**{name: sum(usage[name] for usage in usages) for name in usages[0]})

    def _shards(self) -> list[Build]:
        """All shards of the newest count that is complete as folders."""
        counts = Counter(
            int(folder.name.partition("-of-")[2])
            for folder in (self.output / "shards").glob("*-of-*")
            if re.fullmatch(r"\d+-of-\d+", folder.name)
        )
        whole = [count for count, found in counts.items() if found == count]
        if len(whole) != 1:
            there = ", ".join(f"{found} of {count}" for count, found in sorted(counts.items())) or "none"
            raise UsageError([f"--merge needs all shards of one N in {self.output / 'shards'}; there: {there}"])
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
                ask_rows(
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
        self._after(step)

    def _input(self, step: str) -> Iterator[Row]:
        """The rows of the step before; for `verify`, those that a rule finds right say so."""
        before = self.files(STEPS[STEPS.index(step) - 1])
        if step != "verify" or not self.config.verify.rules_first:
            return before.read()
        right = found_right(before.read(), min_iou=self.config.verify.min_iou)
        return (replace(row, verified_by="rule") if row.number in right else row for row in before.read())

    def _after(self, step: str) -> None:
        done = self.files(step).done()
        assert done is not None  # noqa: S101  # it has just been written
        asked = (
            "" if done.usage is None else f"; {done.usage['asked']} of {done.usage['replies']} replies asked for now"
        )
        _say(f"{step}: {done.rows_out} of {done.rows_in} rows{asked}")
        if done.rows_in and not done.rows_out:
            most = max(done.rejected, key=lambda reason: done.rejected[reason])
            raise RunStoppedError(
                f"step {step} rejected all {done.rows_in} rows (most often: {most}); see {self.files(step).rejects}"
            )

    def _curate(self, wanted: str) -> None:
        """Step 6, with everything that tells of the build."""
        source, files = self.files("verify"), self.files("curate")
        placings = place(source.read(), self.config.curate)
        counts: dict[Split, int] = {"sft": 0, "grpo": 0}
        for placing in placings:
            counts[placing.split] += 1
        paths = split_paths(self.output, counts)
        models = {step: settings.endpoint.model for step, settings in self.config.asking().items()}
        table: Counter[tuple[str, str, str]] = Counter()
        with files.writing(wanted) as writer:
            for row, placing in zip(source.read(), placings, strict=True):
                table[row.source, row.kind, placing.split] += 1
                writer.keep(row)
            writer.notes["moved to RL for a shared image or question"] = sum(placing.moved for placing in placings)
        for split, path in paths.items():
            chosen = (row for row, placing in zip(source.read(), placings, strict=True) if placing.split == split)
            write_lines(path, (sft_line(row) if split == "sft" else grpo_line(row, models) for row in chosen))
        self._report(table, paths, counts, moved=sum(placing.moved for placing in placings))
        for old in self.output.iterdir():
            if _SPLIT_FILE.fullmatch(old.name) and old not in paths.values():
                old.unlink()
        for split, path in paths.items():
            _say(f"{split}: {counts[split]} rows in {path}" + ("" if counts[split] else "; an empty split"))

    def _report(
        self, table: Counter[tuple[str, str, str]], paths: dict[Split, Path], counts: dict[Split, int], *, moved: int
    ) -> None:
        dones = [done for step in STEPS if (done := self.files(step).done()) is not None]
        curate = self.config.curate
        found: dict[str, Any] = {
            "format": 1,
            "name": self.config.name,
            "files": {
                split: {"name": path.name, "rows": counts[split], "sha256": file_digest(path)}
                for split, path in paths.items()
            },
            "table": report.split_table(table),
            "steps": [report.step_report(done, self.config, self.prompts) for done in dones],
            "curation": {
                "cues": curate.cues,
                "matching": curate.matching,
                "disjoint_by": curate.disjoint_by,
                "moved": moved,
            },
        }
        rejects = itertools.chain.from_iterable(lines(self.files(step).rejects) for step in STEPS)
        write_lines(self.output / "rejects.jsonl", rejects)
        write_text(self.output / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        report.funnel(self.output / "funnel.png", found["steps"])
        write_text(self.output / "README.md", report.card(found))
        _say(report.cost_line(found["steps"]))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other builds out of a folder.

    Raises:
        UsageError: If one is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError([f"another build is at work in {folder}; wait for it or take another folder"]) from error
        yield


def _shard_folder(output: Path, shard: tuple[int, int]) -> Path:
    return output / "shards" / f"{shard[0]}-of-{shard[1]}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
