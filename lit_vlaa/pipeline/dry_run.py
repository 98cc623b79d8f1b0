"""What a build would do, before anything is asked."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vlaa.endpoints.replies import CHARS_A_TOKEN, estimate_in
from lit_vlaa.pipeline.rows import Row, StepWriter
from lit_vlaa.pipeline.steps import caption_values, distil_values, rewrite_values, verify_values

if TYPE_CHECKING:
    from lit_vlaa.pipeline.run import Build

CAPTION_WORDS = 200
TRACE_WORDS = 600
"""What a caption and a trace are taken to have; those of long reasoners have several times as many."""
_CHARS_A_WORD = 5.5
_VERDICT_TOKENS = 4


class _Collector(StepWriter):
    """Counts rejects and keeps rows in memory."""

    def __init__(self) -> None:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            super().__init__("metadata", nowhere, nowhere)
        self.rows: list[Row] = []

    def keep(self, row: Row) -> None:
        self.rows.append(row)

    def copy_reject(self, line: object) -> None:
        assert isinstance(line, dict)  # noqa: S101  # as StepWriter makes it
        self.rejected[line["reason"]] += 1


def plan(build: Build) -> list[str]:
    """Reads the sources and estimates requests, tokens and cost, as if no row were rejected on the way.

    Args:
        build: Nothing of it is run or written, but for images that a hub set embeds.

    Returns:
        The lines to print: rows by source and kind, requests and cost by step.

    Raises:
        ValueError: If a source cannot be read.
    """
    from datamodules.images import read_size  # noqa: PLC0415 (the package takes seconds to import)
    from lit_vlaa.pipeline.metadata import read_metadata  # noqa: PLC0415
    from lit_vlaa.pipeline.pictures import scaled  # noqa: PLC0415

    config = build.config
    found = _Collector()
    read_metadata(config, found, base=build.base, shard=build.shard or (1, 1), limit=build.limit, tick=lambda: None)
    output = [f"{len(found.rows)} rows would go into step 2"]
    output += [f"  {count} {source} {kind}" for (source, kind), count in sorted(_groups(found.rows).items())]
    output += [f"rejected in step 1: {count} {reason}" for reason, count in sorted(found.rejected.items())]
    output.append(
        f"estimated for captions of {CAPTION_WORDS} and traces of {TRACE_WORDS} words, no row rejected later:"
    )
    values = {"caption": caption_values, "distil": distil_values, "rewrite": rewrite_values, "verify": verify_values}
    writes = {
        "caption": _tokens(CAPTION_WORDS),
        "distil": _tokens(TRACE_WORDS),
        "rewrite": _tokens(TRACE_WORDS),
        "verify": _VERDICT_TOKENS,
    }
    total = 0.0
    unpriced: list[str] = []
    for step, settings in config.asking().items():
        tokens = requests = 0
        for row in found.rows:
            if step == "caption" and not row.images:
                continue
            stand_in = replace(row, caption=_filler(CAPTION_WORDS), thinking=_filler(TRACE_WORDS), answer=row.truth)
            turns = [turn["content"] for turn in build.prompts[step].fill(values[step](stand_in))]
            limit = config.max_image_pixels
            sizes = (
                [
                    scaled(read_size(build.image_root, i, max_pixels=limit), config.caption.max_pixels)
                    for i in row.images
                ]
                if step == "caption"
                else []
            )
            tokens += estimate_in(turns, sizes)
            requests += 1
        endpoint = settings.endpoint
        written = writes[step] * requests
        line = f"{step}: {endpoint.model}, {requests} requests, about {tokens:,} tokens in, {written:,} out"
        if endpoint.price_in is None or endpoint.price_out is None:
            unpriced.append(step)
        else:
            cost = (tokens * endpoint.price_in + written * endpoint.price_out) / 1e6
            total += cost
            line += f", cost about {cost:,.2f}"
        output.append(line)
    if len(unpriced) == len(values):
        output.append("no cost is told: no endpoint has price_in and price_out")
    else:
        without = f", without {', '.join(unpriced)}, which have no price" if unpriced else ""
        output.append(f"cost about {total:,.2f}{without}")
    return output


def _groups(rows: list[Row]) -> Counter[tuple[str, str]]:
    return Counter((row.source, row.kind) for row in rows)


def _filler(words: int) -> str:
    return "x" * round(words * _CHARS_A_WORD)


def _tokens(words: int) -> int:
    return round(words * _CHARS_A_WORD / CHARS_A_TOKEN)
