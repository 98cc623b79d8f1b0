from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_vlaa.rewards import score_response, truth_text
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rewards.scorers import LexicalScorer
from lit_vlaa.types import KINDS, Kind, RewardRequest, RewardStatus

TRUTHS: dict[Kind, str] = {
    "digit": "3",
    "mcq": "C",
    "math": "y = -5 * sin(-5 * x)",
    "iou": "[0.2, 0.2, 0.6, 0.6]",
    "open_ended": "A red bus stops at the corner.",
}
GOOD: dict[Kind, str] = {
    "digit": "3",
    "mcq": "C",
    "math": r"y = 5\sin(5x)",
    "iou": "[0.2, 0.2, 0.6, 0.6]",
    "open_ended": "A red bus stops at the corner.",
}


def request(kind: Kind, answer: str, truth: str | None = None) -> RewardRequest:
    response = f"<think>t</think><answer>{answer}</answer>"
    return RewardRequest(response=response, kind=kind, truth=TRUTHS[kind] if truth is None else truth)


class Judge:
    """Scores by length; fails on the word "broken"; NaN on "nan"."""

    fingerprint = "by length"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:  # noqa: ARG002
        self.calls.append(list(answers))
        return [None if "broken" in a else float("nan") if "nan" in a else float(len(a)) for a in answers]


@pytest.fixture(scope="module")
def reward() -> Iterator[MixedReward]:
    reward = MixedReward(RewardConfig(math_workers=1, math_timeout_s=8.0))
    yield reward
    reward.close()


def test_a_batch_of_all_kinds_keeps_its_order(reward: MixedReward) -> None:
    requests = [request(kind, GOOD[kind]) for kind in KINDS] + [request(kind, "zzz") for kind in KINDS]
    results = reward(requests)
    assert [result.kind for result in results] == [*KINDS, *KINDS]
    assert [round(result.value, 2) for result in results] == [1, 1, 1, 1, 0.96, 0, 0, 0, 0, 0]
    assert all(result.status == "ok" and result.judged for result in results)
    assert results[0].extracted == "3"
    assert reward([]) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "response", ["", "3", "<answer></answer>", "<answer>3</answer><answer>4</answer>", "<think><answer>3</answer>"]
)
def test_nothing_extractable_pays_nothing(reward: MixedReward, kind: Kind, response: str) -> None:
    (result,) = reward([RewardRequest(response=response, kind=kind, truth=TRUTHS[kind])])
    assert (result.value, result.status, result.extracted) == (0.0, "no_answer", None)


@pytest.mark.parametrize("kind", ["digit", "mcq", "math", "iou"])
def test_an_unreadable_truth_is_not_a_wrong_answer(reward: MixedReward, kind: Kind) -> None:
    (result,) = reward([request(kind, GOOD[kind], truth="")])
    assert (result.value, result.status, result.judged) == (0.0, "unparsable_gt", False)


def test_works_off_the_main_thread(reward: MixedReward) -> None:
    values: list[float] = []
    thread = threading.Thread(target=lambda: values.extend(r.value for r in reward([request("math", GOOD["math"])])))
    thread.start()
    thread.join()
    assert values == [1.0]


def test_reference_baseline_uses_one_call_and_each_reference_once() -> None:
    judge = Judge()
    reward = MixedReward(RewardConfig(open_ended_scale=0.5), scorer=judge)
    results = reward([request("open_ended", text, truth="abc") for text in ("abcde", "ab", "broken", "nan")])
    assert judge.calls == [["abcde", "ab", "broken", "nan", "abc"]]
    # 1 - exp(-(5 - 3) * 0.5) = 1 - 1/e
    assert results[0].value == pytest.approx(0.6321205588285577)
    statuses: list[RewardStatus] = [result.status for result in results]
    assert statuses == ["ok", "ok", "verifier_error", "verifier_error"]
    assert results[1].value == 0.0


def test_fixed_baseline_and_scale_change_the_reward() -> None:
    config = RewardConfig(open_ended_baseline=1.0, open_ended_scale=0.25)
    judge = Judge()
    (result,) = MixedReward(config, scorer=judge)([request("open_ended", "abcde")])
    assert result.value == pytest.approx(0.6321205588285577)  # 1 - exp(-(5 - 1) * 0.25)
    assert judge.calls == [["abcde"]]


def test_reference_baseline_needs_a_reference() -> None:
    (result,) = MixedReward(scorer=Judge())([request("open_ended", "abc", truth=" ")])
    assert result.status == "unparsable_gt"


def test_a_similarity_scorer_refuses_the_reference_baseline() -> None:
    with pytest.raises(ValueError, match="open_ended_baseline"):
        MixedReward(RewardConfig(open_ended_baseline="reference"), scorer=LexicalScorer())


def test_template_tokens_do_not_reach_the_scorer() -> None:
    judge = Judge()
    MixedReward(scorer=judge)([request("open_ended", "x<|im_end|></s>", truth="t")])
    assert judge.calls[0][0] == "x< |im_end| >< /s>"


def test_a_reference_is_scored_once_for_good() -> None:
    judge = Judge()
    reward = MixedReward(RewardConfig(open_ended_scale=0.5), scorer=judge)
    first = reward([request("open_ended", "abcde", truth="abc")])
    again = reward([request("open_ended", "abcde", truth="abc")])
    assert judge.calls == [["abcde", "abc"], ["abcde"]]
    assert first == again


def test_rows_that_differ_in_their_image_alone_have_references_of_their_own() -> None:
    judge = Judge()
    rows = [dataclasses.replace(request("open_ended", "abcde", truth="abc"), id=name) for name in ("a", "b")]
    MixedReward(scorer=judge)(rows)
    assert judge.calls == [["abcde", "abcde", "abc", "abc"]]


def test_a_failed_reference_is_asked_again() -> None:
    judge = Judge()
    reward = MixedReward(scorer=judge)
    for _ in range(2):
        (result,) = reward([request("open_ended", "fine", truth="broken")])
        assert result.status == "verifier_error"
    assert judge.calls == [["fine", "broken"], ["fine", "broken"]]


@pytest.mark.parametrize("odd", ["high", 10**400, [1.0]])
def test_a_scorer_that_gives_no_number_has_failed(odd: Any) -> None:
    reward = MixedReward(scorer=lambda _, answers: [odd] * len(answers))
    for _ in range(2):
        (result,) = reward([request("open_ended", "x")])
        assert (result.value, result.status) == (0.0, "verifier_error")


def test_reference_scores_survive_a_checkpoint_but_not_another_scorer() -> None:
    before = MixedReward(scorer=Judge())
    before([request("open_ended", "abcde", truth="abc")])
    state = json.loads(json.dumps(before.open_ended.state()))
    same = Judge()
    after = MixedReward(scorer=same)
    after.open_ended.load_state(state)
    after([request("open_ended", "abcde", truth="abc")])
    assert same.calls == [["abcde"]]
    other = Judge()
    other.fingerprint = "by width"
    changed = MixedReward(scorer=other)
    changed.open_ended.load_state(state)
    changed([request("open_ended", "abcde", truth="abc")])
    assert other.calls == [["abcde", "abc"]]


class Settings:
    """A scorer with settings of many types, one of them secret."""

    def __init__(self, **settings: Any) -> None:
        self._calls = 0
        self.__dict__ |= {"api_key": "sk-SECRET", "path": Path("a"), "names": ["x"], "table": {"k": 1}, **settings}

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:  # noqa: ARG002
        self._calls += len(answers)
        return [float(len(answer)) for answer in answers]


@pytest.mark.parametrize(
    "changed",
    [{}, {"path": Path("b")}, {"names": ["y"]}, {"table": {"k": 2}}, {"chosen": {"b", "a"}}],
    ids=["nothing", "path", "list", "table", "set"],
)
def test_any_setting_of_a_scorer_tells_its_scores_apart(changed: dict[str, Any]) -> None:
    before = MixedReward(scorer=Settings())
    before([request("open_ended", "abcde", truth="abc")])
    state = before.open_ended.state()
    assert "SECRET" not in json.dumps(state)
    scorer = Settings(**changed)
    after = MixedReward(scorer=scorer)
    after.open_ended.load_state(state)
    after([request("open_ended", "abcde", truth="abc")])
    assert scorer._calls == (2 if changed else 1)


def test_answer_and_reference_are_escaped_alike() -> None:
    seen: list[tuple[str, str]] = []

    def compare(requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        seen.extend((request.truth, answer) for request, answer in zip(requests, answers, strict=True))
        return [1.0] * len(answers)

    text = "Press <Enter> or [INST]"
    MixedReward(RewardConfig(open_ended_baseline=0.0), scorer=compare)([request("open_ended", text, truth=text)])
    ((truth, answer),) = seen
    assert truth == answer != text


@pytest.mark.parametrize(
    "broken",
    [lambda *_: [], lambda *_: 1 / 0, lambda *_: None, lambda *_: {0: 1.0, 1: 1.0}, lambda *_: "11", lambda *_: 5],
)
def test_a_scorer_that_breaks_neither_pays_nor_punishes_nor_raises(
    broken: Callable[..., list[float | None]], caplog: pytest.LogCaptureFixture
) -> None:
    (result,) = MixedReward(scorer=broken)([request("open_ended", "x")])
    assert (result.value, result.status, result.judged) == (0.0, "verifier_error", False)
    assert caplog.records


def test_prepare_asks_the_scorer() -> None:
    class Unreachable(Judge):
        def prepare(self) -> None:
            raise ValueError("no answer")

    MixedReward(scorer=Judge()).prepare()
    with pytest.raises(ValueError, match="no answer"):
        MixedReward(scorer=Unreachable()).prepare()


def words(answer: str, request: RewardRequest) -> float:
    """A verifier of one's own: the share of wanted words; each of its ways to fail is a word."""
    if request.truth == "unreadable":
        raise UnparsableTruthError(request.truth)
    if answer == "crash":
        raise RuntimeError(answer)
    if answer in {"nan", "2", "-1"}:
        return float(answer)
    wanted = request.truth.split()
    return sum(word in answer.split() for word in wanted) / len(wanted)


@pytest.mark.parametrize(
    ("answer", "truth", "value", "status"),
    [
        ("red bus", "red car", 0.5, "ok"),
        ("red car", "red car", 1.0, "ok"),
        ("", "red car", 0.0, "no_answer"),
        ("crash", "red car", 0.0, "verifier_error"),
        ("nan", "red car", 0.0, "verifier_error"),
        ("2", "red car", 0.0, "verifier_error"),
        ("-1", "red car", 0.0, "verifier_error"),
        ("red car", "unreadable", 0.0, "unparsable_gt"),
    ],
)
def test_a_kind_of_ones_own(answer: str, truth: str, value: float, status: RewardStatus) -> None:
    reward = MixedReward(verifiers={"words": words})
    assert reward.kinds == (*KINDS, "words")
    (result,) = reward([request("words", answer, truth)])
    assert (result.value, result.kind, result.status) == (value, "words", status)


def test_a_kind_needs_a_plain_name() -> None:
    with pytest.raises(ValueError, match=r"--model\.verifiers: 'Two Words'"):
        MixedReward(verifiers={"Two Words": words})


@pytest.mark.parametrize("kind", ["digit", "math", "open_ended"])
def test_a_kind_of_the_five_can_be_replaced(kind: Kind) -> None:
    reward = MixedReward(verifiers={kind: words})
    assert reward.kinds == KINDS
    (result,) = reward([request(kind, "red", "red car")])
    assert (result.value, result.status) == (0.5, "ok")


def test_format_weight() -> None:
    reward = MixedReward(RewardConfig(format_weight=0.1))
    right, wrong, missing, unread = reward(
        [
            request("digit", "3"),
            request("digit", "4"),
            RewardRequest(response="3", kind="digit", truth="3"),
            request("digit", "3", truth="x"),
        ]
    )
    assert (right.value, missing.value, unread.value) == (1.0, 0.0, 0.0)
    assert wrong.value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("open_ended_scale", 0.0),
        ("open_ended_baseline", float("nan")),
        ("math_workers", 0),
        ("math_timeout_s", -1.0),
        ("math_memory_mb", 10),
        ("format_weight", 1.5),
        ("max_failed", -0.1),
        ("max_failed", 1.1),
        ("failed_window", 0),
    ],
)
def test_settings_are_checked(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--model.reward.{setting}"):
        RewardConfig(**{setting: value})  # type: ignore[arg-type]


def test_the_callers_mistakes_raise() -> None:
    with pytest.raises(ValueError, match="image_size"):
        score_response("<answer>[1, 2, 3, 4]</answer>", kind="iou", truth=TRUTHS["iou"], box_space="qwen2_5_vl")
    with pytest.raises(ValueError, match="kind"):
        score_response("x", kind="bleu", truth="x")


def test_score_response_takes_truths_of_any_form() -> None:
    assert score_response("<answer>3</answer>", kind="digit", truth=3).value == 1
    assert score_response("<answer>3</answer>", kind="digit", truth=3.0).value == 1
    box = "<answer>[0.2, 0.2, 0.6, 0.6]</answer>"
    assert score_response(box, kind="iou", truth=[0.2, 0.2, 0.6, 0.6]).value == pytest.approx(1)
    pixels = "<answer>[84, 117.6, 252, 352.8]</answer>"
    assert score_response(
        pixels, kind="iou", truth=(0.2, 0.2, 0.6, 0.6), box_space="qwen2_5_vl", image_size=(420, 588)
    ).value == pytest.approx(1)
    question = "What?\nA: 4\nB: 6"
    assert score_response("<answer>6</answer>", kind="mcq", truth="B", question=question).value == 1
    assert truth_text([0.5, 1]) == "[0.5, 1]"


def test_importing_the_package_is_cheap() -> None:
    script = "import sys, lit_vlaa.rewards; print({'torch', 'sympy', 'torchmetrics'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


HOSTILE = [
    "\x00",
    "\ud800",
    "\u202e4",
    "𝟛",
    "<|image_pad|>" * 500,
    "<answer" * 500,
    "\\boxed{" * 2000,
    "{" * 4000,
    "(" * 4000,
    "9" * 5000,
    "[" * 4000,
    "1,111" * 3000,
    "A or " * 3000,
    "is " * 5000,
    "9^9^9^9",
    "(10^9)!",
    "\\sum_{i=1}^{10^9} i^{200}",
    "x^{200}" * 50,
    "import os; os._exit(1)",
    "${jndi:x}",
    "%s%n" * 300,
    "nan",
    "inf",
    "-",
    "=",
    ".",
    "\\",
    "$",
    "$$$",
    "†",
    "\n" * 5000,
    "[nan, inf, 1e999, -1e999]",
    '{"bbox_2d": [' * 500,
    "\\frac" * 900,
    "√" * 900,
    "|" * 900,
    "-" * 3000,
    "^" * 3000,
    "1" + "!" * 900,
    "sin " * 900,
    "log_" * 900,
    "±" * 40,
    "," * 4000,
    "=" * 4000,
    "1=" * 400,
]


def test_no_hostile_text_raises_or_takes_long(reward: MixedReward) -> None:
    rng = random.Random(11)
    alphabet = [chr(code) for code in [*range(1, 128), 0x2212, 0x221A, 0x660, 0x1D7D9, 0xD800, 0x200B]]
    garbage = ["".join(rng.choices(alphabet, k=rng.randint(1, 200))) for _ in range(100)]
    start = time.process_time()
    for text in HOSTILE + garbage:
        for result in reward([request(kind, text) for kind in KINDS if kind != "open_ended"]):
            assert result.judged, (text[:40], result)
            assert result.value == 0.0 or text in {"𝟛", *garbage}, (text[:40], result)
    reward([request("open_ended", text) for text in HOSTILE[:8]])
    assert time.process_time() - start < 20
