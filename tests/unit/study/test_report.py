from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.studies import ARMS, edit_manifest, edit_rows, only, write_json, write_lines, write_study
from lit_vlaa.checks import UsageError
from lit_vlaa.cli import main
from lit_vlaa.study import html
from lit_vlaa.study.contrasts import Contrasts
from lit_vlaa.study.examples import choose
from lit_vlaa.study.findings import find
from lit_vlaa.study.report import run, write_report
from lit_vlaa.study.results import read_study
from lit_vlaa.study.sections import scale

HOSTILE = "<script>alert(1)</script> | `x` [a](http://b) ![c](d) \u202eevil\x1b[2J\x00 \ud800 </pre></think> &amp; $x$"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "source"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six arms and two seeds with its report."""
    made = write_study(tmp_path_factory.mktemp("reports") / "study", seeds=(1, 2), rows=24, perplexity=True)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report" / "report.html").read_text(encoding="utf-8"))


def test_a_page_loads_and_runs_nothing(folder: Path, page: Page) -> None:
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "form", "base", "svg"}
    )
    policies = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [html.POLICY]
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "srcset"}:
                assert str(value).startswith("data:image/")
            if name == "href":
                assert str(value).startswith("#")
    size = (folder / "report" / "report.html").stat().st_size
    assert size < 2_000_000


def test_sections_in_order_and_linked(page: Page) -> None:
    links = [str(found["href"])[1:] for tag, found in page.tags if tag == "a"]
    headings = [found["id"] for tag, found in page.tags if tag == "h2"]
    assert links == headings
    assert headings == [
        "verdicts",
        "scores",
        "paired-comparisons",
        "were-the-arms-matched",
        "training",
        "traces",
        "examples-side-by-side",
        "costs",
        "how-to-reproduce",
    ]


def test_what_a_page_says(page: Page) -> None:
    for words in (
        "Of 10 claims",
        "RL alone improves on the base model.",
        "supported",
        "Holm's correction",
        "24 × 2",
        "model.init_args.optim.lr: 0.001 / 0.0003 (each stage's own)",
        "data.init_args.data_file: sft.json / aha.json (traces with cues only)",
        "rl: model.init_args.kl",
        # 40 steps of 500 tokens a second for half a second, and of 100 for two seconds.
        "sft+rl sft 40 10,000 sft+rl rl 40 8,000",
        "abababababababab…",
        "lit-vlaa 0.1.0, commit 0123abc",
        "perplexity of the response under the base model",
        "Chosen by rule, not by hand: of seed 1,",
        "both sides are called the same in practice: 0.02 in scores and rewards, 0.05 in shares and error rates",
        "lit-vlaa study run --config study.yaml",
        "lit-vlaa fit --config=configs/rl.yaml --seed_everything=1",
    ):
        assert words in page.text, words
    assert "--seed_everything=2" not in page.text


def test_on_narrow_screens_cells_bear_their_heads(page: Page) -> None:
    labels = [found["data-label"] for tag, found in page.tags if tag == "td" and "data-label" in found]
    assert labels[:4] == ["verdict", "the paper's claim, in our words", "read as", "what this study says"]


def test_pictures_have_both_themes_and_words(page: Page) -> None:
    pictures = [found for tag, found in page.tags if tag == "img"]
    sources = [found for tag, found in page.tags if tag == "source"]
    assert len(sources) == 6
    assert all(found["media"] == "(prefers-color-scheme: dark)" for found in sources)
    assert all(found["alt"] for found in pictures)
    alts = " ".join(str(found["alt"]) for found in pictures)
    assert "RL: training reward: rl from 0." in alts
    assert "Scores with 95% intervals: base 0." in alts


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_report(folder, tmp_path / "again")
    first = {path.relative_to(folder / "report"): path.read_bytes() for path in (folder / "report").rglob("*.*")}
    again = {path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*.*")}
    assert first == again
    assert {path.name for path in first} >= {"report.html", "report.md", "report.json", "scores.svg", "scores-dark.svg"}


def test_numbers_for_programs(folder: Path) -> None:
    numbers = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert [claim["claim"] for claim in numbers["claims"]] == list(range(1, 11))
    scores = Contrasts(read_study(folder)).mean("rl", "score").found
    assert numbers["scores"]["rl"]["value"] == scores.value
    assert numbers["scores"]["rl"]["low"] == scores.low
    assert set(numbers["scores"]["rl"]["by_seed"]) == {"1", "2"}
    assert set(numbers["scores_by"]) == {"kind"}
    assert len(numbers["pairs"]) == 15
    assert numbers["curves"]["reward/mean"]["rl"]["steps"] == list(range(1, 41))
    assert list(numbers["curves"]["train/loss"]) == ["sft", "sft-aha", "sft-plain"]
    assert numbers["traces"]["arms"]["sft"]["rows"] == 48
    costs = {cost["job"]: cost for cost in numbers["costs"]}
    # Forty rollouts of 2 s at 100 tokens a second, forty steps of 0.5 s at 500.
    assert costs["seed1-rl-rl"] == {"job": "seed1-rl-rl", "seconds": 12.5, "tokens": 8000}
    assert costs["seed1-sft-sft"]["tokens"] == 10000


def test_curves_are_smoothed_means_with_the_seeds_band(folder: Path) -> None:
    study = read_study(folder)
    line = next(line for line in find(study).curves["reward/mean"] if line.arm == "rl")
    one, two = (study.curves[f"seed{seed}-rl-rl"]["reward/mean"].values for seed in (1, 2))
    # Forty steps: running means over two.
    smooth = [sum(values[9:11]) / 2 for values in (one, two)]
    assert line.middle[10] == pytest.approx(sum(smooth) / 2)
    assert (line.low[10], line.high[10]) == pytest.approx((min(smooth), max(smooth)))
    assert line.middle[0] == pytest.approx((one[0] + two[0]) / 2)


def test_markdown_stands_beside_its_pictures(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    names = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert names
    assert all((folder / "report" / name).is_file() for name in names)
    assert "** | RL alone improves on the base model. | score: rl above base | rl scores" in text
    assert "<mark>" in text


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", arms={"base": ARMS["base"], "rl": ARMS["rl"]}, seeds=(1,), rows=4)
    for path in made.glob("jobs/*-test/responses.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        fields = ("response", "question", "truth", "kind", "source", "image", "extracted", "status")
        hostile = dict.fromkeys(fields, HOSTILE)
        write_lines(path, [row | {"id": f"{place} {HOSTILE}"} | hostile for place, row in enumerate(rows)])
    edit_manifest(
        made, name=HOSTILE, description=HOSTILE, code={"version": HOSTILE}, data={HOSTILE: {"sha256": HOSTILE}}
    )
    arm = {"title": HOSTILE, "steps": [], "differs": {}}
    edit_manifest(made, arms={"base": arm, "rl": arm | {"steps": ["rl"]}}, config={HOSTILE: [HOSTILE]})
    write_report(made)
    content = (made / "report" / "report.html").read_text(encoding="utf-8")
    found = Page(content)
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count("<script>alert(1)</script>") > 10
    for char in ("\u202e", "\x1b", "\x00", "\ud800"):
        assert char not in content
    assert "⟨U+202E⟩evil⟨U+001B⟩" in content
    text = (made / "report" / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,})\n.*?^\1$|<pre>.*?</pre>", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)`|(?<!\\)\]\(|://", outside)
    columns = {line.replace("\\|", "").count("|") for line in outside.splitlines() if line.startswith("| 1 |")}
    assert columns == {6}
    numbers = json.loads((made / "report" / "report.json").read_text(encoding="utf-8"))
    assert "⟨U+D800⟩" in numbers["name"]


def test_examples_follow_the_rule(folder: Path) -> None:
    contrasts = Contrasts(read_study(folder))
    arms = list(ARMS)
    chosen = choose(contrasts, arms, 1)
    assert chosen == choose(contrasts, arms, 1)
    kinds = [contrasts.study.evaluations["base", 1].rows[key].kind for key, _ in chosen]
    assert kinds == sorted(kinds)
    for key, why in chosen:
        right = {contrasts.study.evaluations[arm, 1].rows[key].score for arm in arms}
        assert why == ("the arms disagree" if len(right) > 1 else "the arms agree")
    assert {key for key, _ in chosen} != {key for key, _ in choose(contrasts, arms, 2)}


def test_a_study_that_has_not_ended(tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", arms={"base": ARMS["base"], "rl": ARMS["rl"]}, seeds=(1, 2), rows=4)
    (made / "jobs" / "seed2-rl-test" / "done.json").unlink()
    write_report(made)
    found = Page((made / "report" / "report.html").read_text(encoding="utf-8"))
    assert "This study has not ended: 1 of 6 jobs are missing." in found.text
    assert "job seed2-rl-test (evaluate, seed 2, of rl) has not ended" in found.text
    for path in made.glob("jobs/*/done.json"):
        path.unlink()
    write_report(made)
    found = Page((made / "report" / "report.html").read_text(encoding="utf-8"))
    assert "No arm has been evaluated yet." in found.text
    assert "10 are not examined" in found.text


def test_arms_of_one_seed_and_no_rl(tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", arms={"only": only("base")}, seeds=(7,), rows=3)
    edit_manifest(made, matched={}, data={}, packages={}, machine={})
    for path in made.glob("jobs/*/responses.jsonl"):
        edit_rows(path, score=None, tokens=None, image=None, question="")
    write_report(made)
    found = Page((made / "report" / "report.html").read_text(encoding="utf-8"))
    for words in (
        "There are no two arms to compare.",
        "No training curve was logged.",
        "The manifest does not say what was compared.",
        "No row has a verdict in all arms.",
    ):
        assert words in found.text, words


def test_words_on_what_the_scale_can_show(tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", arms={"base": ARMS["base"]}, seeds=(1,), rows=4)
    assert scale(find(read_study(made))).startswith(
        "What is found holds for this model, this data and this evaluation, on 4 rows and 1 seed;"
    )
    config = made / "jobs" / "seed1-base-test" / "version_0" / "config.yaml"
    write_json(config, {"model": {"init_args": {"backbone": {"path": "tiny"}}}})
    assert "The policy is the embedded tiny model" in scale(find(read_study(made)))
    assert scale(find(read_study(made))).endswith("intervals do not cover what another one would give.")
    write_json(config, {"model": {"init_args": {"backbone": {"path": "Qwen/Qwen2.5-VL-3B-Instruct"}}}})
    assert "holds for the model Qwen/Qwen2.5-VL-3B-Instruct," in scale(find(read_study(made)))
    edit_manifest(made, config={"claims": {"scale": "Nothing at all."}})
    assert scale(find(read_study(made))) == "Nothing at all."


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(folder), "--output-dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert (tmp_path / "out" / "report.md").is_file()


def test_the_command_refuses_what_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json does not exist; the folder holds no study"):
        run([str(tmp_path)])
    with pytest.raises(UsageError, match="needed: FOLDER"):
        run([])
