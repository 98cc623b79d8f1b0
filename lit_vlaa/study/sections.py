"""The report's sections: findings in words, tables and pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from lit_vlaa.study import pictures
from lit_vlaa.study.caveats import MARGINS, NOTABLE, TOKENS_MARGIN
from lit_vlaa.study.document import (
    Badge,
    Block,
    Bullets,
    Cell,
    Document,
    Heading,
    Paragraph,
    Table,
    Tone,
)
from lit_vlaa.study.examples import RULE, examples
from lit_vlaa.study.findings import LENGTH, LOSS, REWARD, Findings
from lit_vlaa.study.provenance import matched, reproduce, unlike
from lit_vlaa.study.score_sections import comparisons, listed, scores
from lit_vlaa.study.trace_section import traces
from lit_vlaa.study.verdicts import Judged, Verdict

QUESTION = (
    "Does supervised fine-tuning on distilled reasoning traces help reinforcement learning, or does it teach a model "
    "the mere look of reasoning?"
)
_TONES: dict[Verdict, Tone] = {"supported": "good", "contradicted": "bad", "undecided": "open", "not examined": "none"}


def compose(findings: Findings) -> Document:
    """The whole report."""
    study = findings.study
    blocks: list[Block] = []
    for section in (verdicts, scores, comparisons, matched, training, traces, shown_examples, costs, reproduce):
        blocks += section(findings)
    lead = " ".join(part for part in (str(study.manifest.get("description") or ""), QUESTION) if part)
    return Document(f"Study {study.name}: SFT or RL?", lead, tuple(blocks), findings.arms)


def verdicts(findings: Findings) -> Iterator[Block]:
    """What the study says of each claim, and what its scale allows to say."""
    yield Heading("Verdicts")
    study = findings.study
    if study.missing:
        yield Paragraph(
            f"This study has not ended: {len(study.missing)} of {len(study.jobs)} jobs are missing. What follows is of "
            "the others, and may change."
        )
        shown = study.missing[:10]
        more = [f"and {len(study.missing) - len(shown)} more"] if len(study.missing) > len(shown) else []
        yield Bullets((*shown, *more))
    if found := unlike(study):
        yield Paragraph("Mind, of the study as a whole:")
        yield Bullets(tuple(found))
    rows: list[tuple[Cell, ...]] = [
        (
            str(one.claim.number),
            Badge(one.verdict, _TONES[one.verdict]),
            one.claim.says,
            one.claim.read_as,
            "\n".join([one.sentence, *(f"Mind: {line}" for line in one.caveats)]),
        )
        for one in findings.claims
    ]
    head = ("", "verdict", "the paper's claim, in our words", "read as", "what this study says")
    yield Paragraph(_counted(findings.claims) + " " + scale(findings))
    yield Table(head, tuple(rows), words=True)
    yield Paragraph(
        "A claim is supported or contradicted where its p-value is below 0.05 after Holm's correction for all claims "
        "that could be examined, so that one or more false verdicts are found in about 5% of such studies at most. "
        "Undecided "
        "means that these rows and seeds do not tell, not that there is no difference. Where the interval of a "
        "difference lies within a margin both sides are called the same in practice: "
        f"{MARGINS['score']:.2f} in scores and rewards, {MARGINS['cue']:.2f} in shares and error rates, "
        f"{MARGINS['slope']:.2f} in a score for each doubling of rows, {TOKENS_MARGIN:.0%} of the tokens. Shares of "
        "responses that were cut off or give no answer are named with a verdict where they differ by "
        f"{NOTABLE:.2f} or more: such responses count as wrong.",
        small=True,
    )
    points = [
        (f"{one.claim.number}: {part.part.first} - {part.part.second}", "", part.contrast.found, ())
        for one in findings.claims
        for part in one.found
        if part.part.measure == "score"
    ]
    if points:
        yield pictures.dots(
            "claims",
            points,
            findings.arms,
            unit="difference of scores (first arm less second), with its 95% interval",
            alt=f"Differences of scores that claims speak of: {listed(points)}.",
            caption="Claims about scores: right of 0 the first arm is better. Intervals are each difference's own.",
            zero=True,
        )


def scale(findings: Findings) -> str:
    """What a study of this scale can show."""
    if findings.options.scale is not None:
        return findings.options.scale
    rows = sum(row.set in findings.contrasts.sets for row in findings.contrasts.rows)
    size = f"{rows} rows and {_counted_seeds(findings.study.seeds)}"
    one = "All arms and seeds begin from one base model: intervals do not cover what another one would give."
    model = next((found.model for found in findings.study.evaluations.values() if found.model), None)
    if model == "tiny":
        return (
            "The policy is the embedded tiny model, which starts from random weights and answers questions about drawn "
            f"scenes: it is there to check the machinery. What is found holds for such a model on {size} of generated "
            "data; it says nothing about models of 3B parameters, about photographs, or about the paper's own data. "
            f"{one}"
        )
    named = f"the model {model}" if model else "this model"
    return (
        f"What is found holds for {named}, this data and this evaluation, on {size}; other sizes, data or training "
        f"lengths may tell another story. {one}"
    )


def _counted(claims: Sequence[Judged]) -> str:
    counts = Counter(one.verdict for one in claims)
    parts = [
        f"{counts[verdict]} {'are' if counts[verdict] != 1 else 'is'} {verdict}"
        for verdict in _TONES
        if counts[verdict]
    ]
    return f"Of {len(claims)} claims {_joined(parts)}."


def training(findings: Findings) -> Iterator[Block]:
    """Curves of both kinds of training."""
    yield Heading("Training")
    band = (
        "Lines: means over seeds; bands: lowest to highest seed; both as running means over a twentieth of the steps."
    )
    panels = [
        pictures.Panel(title, unit, lines)
        for name, title, unit in (
            (REWARD, "RL: training reward", "mixed reward of rollouts"),
            (LENGTH, "RL: response length", "tokens of a rollout"),
        )
        if (lines := findings.curves[name])
    ]
    if panels:
        reward = "; ".join(f"{line.arm} from {line.middle[0]:.2f} to {line.middle[-1]:.2f}" for line in panels[0].lines)
        yield pictures.curves("rl", panels, findings.arms, alt=f"{panels[0].title}: {reward}.", caption=f"RL. {band}")
    if lines := findings.curves[LOSS]:
        ends = "; ".join(f"{line.arm} from {line.middle[0]:.2f} to {line.middle[-1]:.2f}" for line in lines)
        panel = pictures.Panel("SFT: training loss", "nats a token", lines)
        caption = f"SFT; a stage that arms share stands under the first of them. {band}"
        yield pictures.curves("sft", [panel], findings.arms, alt=f"Training loss: {ends}.", caption=caption)
    if not panels and not findings.curves[LOSS]:
        yield Paragraph("No training curve was logged.")


def shown_examples(findings: Findings) -> Iterator[Block]:
    """The same rows as all arms answered them."""
    yield Heading("Examples side by side")
    seed = next(
        (
            seed
            for seed in findings.study.seeds
            if all((arm, seed) in findings.study.evaluations for arm in findings.evaluated)
        ),
        None,
    )
    if seed is None or not findings.evaluated:
        yield Paragraph("There is no seed of which all arms have been evaluated.")
        return
    yield Paragraph(RULE.format(seed=seed), small=True)
    found = list(examples(findings.contrasts, findings.evaluated, seed))
    yield from found
    if not found:
        yield Paragraph("No row has a verdict in all arms.")


def costs(findings: Findings) -> Iterator[Block]:
    """Time and tokens."""
    yield Heading("Costs")
    sums: dict[tuple[str, str, str], list[tuple[float, int | None]]] = defaultdict(list)
    for one in findings.costs:
        sums[one.job.kind, one.job.stage, ", ".join(one.job.arms)].append((one.job.seconds or 0.0, one.tokens))
    rows: list[tuple[Cell, ...]] = [
        (kind, stage, arms, str(len(entries)), duration(sum(seconds for seconds, _ in entries)), _tokens(entries))
        for (kind, stage, arms), entries in sums.items()
    ]
    everything = [entry for entries in sums.values() for entry in entries]
    rows.append(
        ("all", "", "", str(len(everything)), duration(sum(seconds for seconds, _ in everything)), _tokens(everything))
    )
    yield Table(("job", "stage", "arms", "jobs", "time", "tokens"), tuple(rows), left=3)
    yield Paragraph(
        "Time is of the wall clock, added up over jobs. Tokens: written by evaluations and rollouts, trained on by "
        "SFT, to three digits; all: of the jobs that tell.",
        small=True,
    )


def duration(seconds: float) -> str:
    """Seconds in units that are easy to read."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


def _tokens(entries: Sequence[tuple[float, int | None]]) -> str:
    known = [tokens for _, tokens in entries if tokens is not None]
    return f"{sum(known):,}" if known else "–"


def _counted_seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
