"""Which rows a report shows with all arms' answers, and their pictures.

Rows are chosen by rule, not by hand: of the study's first seed, for each kind of question, the first row on which the
arms disagree (some right, some wrong) and the first on which they agree, first by the SHA-256 of `seed:set:id`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_vlaa.study.contrasts import Contrasts
from lit_vlaa.study.document import Answered, Example
from lit_vlaa.study.measures import cue_spans
from lit_vlaa.study.quantities import is_wrong
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.results import Key

RULE = (
    "Chosen by rule, not by hand: of seed {seed}, for each kind of question, the first row on which the arms disagree "
    "and the first on which they agree, in the order of the SHA-256 of seed, set and id. Marked are aha cues and "
    "markers of hesitation."
)
MOST = 12
"""Examples in a report; kinds beyond that have none."""

_SIDE = 320
_MOST_PIXELS = 1 << 26
_MOST_BYTES = 160_000
_QUALITY = 82
_MOST_ANSWER = 300


def choose(contrasts: Contrasts, arms: Sequence[str], seed: int) -> list[tuple[Key, str]]:
    """Rows to show, each with why: by kind, a row of disagreement before one of agreement.

    Args:
        contrasts: The study's numbers.
        arms: Those that were evaluated with this seed.
        seed: Whose answers are shown.
    """
    evaluations = [contrasts.study.evaluations[arm, seed].rows for arm in arms]
    first: dict[tuple[str, bool], Key] = {}
    for key in sorted(
        contrasts.keys, key=lambda key: hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode("utf-8", "replace")).digest()
    ):
        wrong = {is_wrong(rows[key]) for rows in evaluations}
        if key[0] in contrasts.sets and None not in wrong:
            first.setdefault((evaluations[0][key].kind, len(wrong) > 1), key)
    kinds = sorted({kind for kind, _ in first})
    words = {True: "the arms disagree", False: "the arms agree"}
    chosen = [(first[kind, split], words[split]) for kind in kinds for split in (True, False) if (kind, split) in first]
    return chosen[:MOST]


def examples(contrasts: Contrasts, arms: Sequence[str], seed: int) -> Iterator[Example]:
    """The chosen rows with the answers of all arms.

    Args:
        contrasts: The study's numbers.
        arms: Those that were evaluated with this seed.
        seed: Whose answers are shown.
    """
    for key, why in choose(contrasts, arms, seed):
        answered = [(arm, contrasts.study.evaluations[arm, seed]) for arm in arms]
        row = answered[0][1].rows[key]
        image, kind, reason = picture(answered[0][1].image_root, row.image)
        yield Example(
            title=f"{row.kind or row.set}{f' ({row.source})' if row.source else ''}: {why}",
            question=row.question or f"(the question of row {row.id} of {row.set} was not saved)",
            truth=_cut(row.truth) or "(not saved)",
            image=image,
            image_type=kind,
            no_image=reason,
            answers=tuple(_answered(arm, evaluation.rows[key]) for arm, evaluation in answered),
        )


def _answered(arm: str, row: ScoredResponse) -> Answered:
    wrong = is_wrong(row)
    facts = [f"score {row.score:.2f}" if row.score is not None else f"no score ({row.status or 'no verdict'})"]
    if row.tokens is not None:
        facts.append(f"{row.tokens} tokens")
    if row.finish == "length":
        facts.append("cut off by the limit")
    if row.extracted is not None:
        facts.append(f"answer: {_cut(row.extracted)}")
    return Answered(
        arm, row.response, None if wrong is None else not wrong, ", ".join(facts), tuple(cue_spans(row.response))
    )


def picture(root: Path | None, path: str | None) -> tuple[bytes | None, str, str]:
    """A picture of a data file, decoded, made small and encoded anew, so that nothing else of the file gets in.

    Returns:
        The bytes, their MIME type, and the reason where there are none.
    """
    from PIL import Image  # noqa: PLC0415 (reports without pictures need neither)

    from datamodules.images import ImageError, open_rgb  # noqa: PLC0415

    if not path:
        return None, "", "the row has none"
    if root is None:
        return None, "", "the evaluation's image_root is not known"
    try:
        image = open_rgb(root.resolve(), path, max_pixels=_MOST_PIXELS)
    except ImageError as error:
        return None, "", error.reason
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    image = Image.frombytes("RGB", image.size, image.tobytes())  # without comments and profiles, which would be saved
    as_png, as_jpeg = io.BytesIO(), io.BytesIO()
    image.save(as_png, "PNG", optimize=True)
    image.save(as_jpeg, "JPEG", quality=_QUALITY, optimize=True)
    # Drawings are smaller and sharper as PNG, photographs as JPEG.
    if as_png.tell() <= 2 * as_jpeg.tell() and as_png.tell() <= _MOST_BYTES:
        return as_png.getvalue(), "image/png", ""
    return as_jpeg.getvalue(), "image/jpeg", ""


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_ANSWER else f"{text[:_MOST_ANSWER]}…"
