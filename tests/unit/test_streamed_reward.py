"""Verdicts while completions are still being written: the same ones, no later, and nothing that hangs or is lost."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import pytest
import torch

from helpers.ctrl_c import everywhere
from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rollout import Judged, Sampled, flatten, judge
from lit_vlaa.streamed_reward import StreamedVerdicts
from lit_vlaa.types import Completion, Prompt, RewardRequest, RewardResult

CPU = torch.device("cpu")
PATIENCE = 120.0
"""Seconds for what happens at once, or never."""

ROWS: list[tuple[str, str, str, list[str | None]]] = [
    ("digit", "3", "How many?", ["3", "4", None]),
    ("mcq", "B", "Which?\n(A) a dog\n(B) a cat", ["B", "A", "a cat"]),
    ("iou", "[0.1, 0.1, 0.5, 0.5]", "Where?", ["[0.1, 0.1, 0.5, 0.5]", "[0.3, 0.1, 0.5, 0.5]", "nowhere"]),
    ("math", "1/2", "What is 2/4?", ["0.5", r"\frac{2}{4}", "2"]),
    ("open_ended", "a red bus", "What is it?", ["a long red bus", "a bus", "fail"]),
    ("open_ended", "two dogs", "Who is there?", ["fail", "two dogs and more", "cats"]),
    ("open_ended", " ", "Nothing is true?", ["yes", "no", None]),
    ("words", "tree", "What grows?", ["tree", "raise", "1.5"]),
    ("open_ended", "a red bus", "What is it?", ["bus", "a red bus, parked", "b"]),
    ("math", "x^2", "Square x.", ["x*x", "x^3", r"\("]),
    ("digit", "seven of", "How many?", ["7", "6", "5"]),
]
"""Kind, truth, question and answers; the same open-ended row occurs twice, and every way to fail."""

TEXTS = [
    "no tags" if answer is None else f"<think> so </think><answer>{answer}</answer>"
    for *_, answers in ROWS
    for answer in answers
]


@cache
def prompts() -> tuple[Prompt, ...]:
    """One of each of `ROWS`."""
    text = mixed_prompts(tiny_backbone())[2]
    return tuple(
        dataclasses.replace(
            text,
            image_sizes=((100, 100),),
            record=dataclasses.replace(
                text.record, id=f"{kind}-{truth}", kind=kind, truth=truth, question=question, source="other"
            ),
        )
        for kind, truth, question, _ in ROWS
    )


def groups() -> list[list[Completion]]:
    """Three completions a prompt, of one token each: the number of their text."""
    return [
        [Completion(torch.tensor([3 * row + sample]), torch.zeros(1), "stop") for sample in range(3)]
        for row in range(len(ROWS))
    ]


def decode(ids: torch.Tensor) -> str:
    return TEXTS[int(ids[0])]


class Lengths:
    """Scores an answer by its length, keeps note of what it was asked, and fails on some."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        assert len(requests) == len(answers)
        self.asked += answers
        return [None if answer == "fail" else float(len(answer)) for answer in answers]


def words(answer: str, request: RewardRequest) -> float:
    """Fails by an exception and by a value out of range."""
    if answer == "raise":
        raise RuntimeError("on purpose")
    return float(answer) if answer == "1.5" else float(answer == request.truth)


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    reward = MixedReward(RewardConfig(math_workers=1))
    yield reward._pool
    reward.close()


def fresh_reward(pool: Any) -> tuple[MixedReward, Lengths]:
    """A reward with no reference scored yet; the processes, which keep no state that matters, are shared."""
    scorer = Lengths()
    reward = MixedReward(RewardConfig(open_ended_baseline="reference"), scorer, {"words": words})
    reward._pool = pool
    return reward, scorer


@pytest.fixture(scope="module")
def at_once(pool: Any) -> tuple[Judged, dict[str, Any], list[str]]:
    """Verdicts of one call for everything, what is kept of the references, and what the scorer was asked."""
    reward, scorer = fresh_reward(pool)
    judged = judge(flatten(prompts(), groups()), decode, reward)
    return judged, reward.open_ended.state(), scorer.asked


def test_the_rows_hold_every_status(at_once: Any) -> None:
    statuses = [result.status for result in at_once[0].results]
    assert set(statuses) == {"ok", "no_answer", "verifier_error", "unparsable_gt"}
    assert statuses.count("verifier_error") == 4  # two by the scorer, two by `words`
    assert at_once[2].count("a red bus") == 1  # the reference of two rows


@pytest.mark.parametrize("seed", range(8))
def test_verdicts_do_not_depend_on_when_groups_come(seed: int, pool: Any, at_once: Any) -> None:
    chance = random.Random(seed)
    reward, scorer = fresh_reward(pool)
    order = chance.sample(range(len(ROWS)), len(ROWS))
    order = order[: len(ROWS) - seed % 3]  # some are never announced
    each, calls, free = groups(), [], threading.Semaphore(0)

    def slow(sampled: Sampled) -> Judged:
        calls.append(len(sampled.prompts))
        judged = judge(sampled, decode, reward)
        free.release()
        return judged

    with StreamedVerdicts(prompts(), 3, slow, CPU) as verdicts:
        for index in order:
            verdicts.add(index, each[index])
            if chance.random() < 0.5:
                assert free.acquire(timeout=PATIENCE)
        sampled = verdicts.finish(each)
        judged, seconds = verdicts.result()
    expected, kept, asked = at_once
    assert judged.completions == sampled.completions == tuple(completion for group in each for completion in group)
    assert judged.texts == expected.texts
    assert judged.results == expected.results
    assert reward.open_ended.state()["references"] == kept["references"]
    assert sorted(scorer.asked) == sorted(asked)
    assert len(calls) > 1
    assert sum(calls) == len(ROWS)
    assert seconds > 0


def test_all_that_wait_at_one_time_go_together() -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[list[str]] = []

    def gated(sampled: Sampled) -> Judged:
        calls.append([prompt.record.question for prompt in sampled.prompts])
        begun.set()
        assert go.wait(PATIENCE)
        return told(sampled)

    each = groups()
    with StreamedVerdicts(prompts(), 3, gated, CPU) as verdicts:
        verdicts.add(4, each[4])
        assert begun.wait(PATIENCE)
        for index in (9, 0, 7):
            verdicts.add(index, each[index])
        verdicts.finish(each)
        go.set()
        judged, _ = verdicts.result()
    rest = [index for index in range(len(ROWS)) if index not in {4, 9, 0, 7}]
    assert calls == [[ROWS[index][2] for index in batch] for batch in ([4], [9, 0, 7, *rest])]
    assert judged.texts == tuple(TEXTS)


def told(sampled: Sampled) -> Judged:
    """A verdict that names its completion."""
    return judge(sampled, decode, lambda requests: [RewardResult(1.0, r.kind, r.response, "ok") for r in requests])


def test_only_work_counts_as_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("lit_vlaa.streamed_reward.time.perf_counter", lambda: clock[0])
    done = threading.Event()

    def slow(sampled: Sampled) -> Judged:
        clock[0] += 2.0
        done.set()
        return told(sampled)

    each = groups()
    with StreamedVerdicts(prompts(), 3, slow, CPU) as verdicts:
        clock[0] += 100.0
        verdicts.add(0, each[0])
        assert done.wait(PATIENCE)
        verdicts.finish(each)
        assert verdicts.result()[1] == 4.0


def test_a_group_that_is_not_what_was_announced_is_judged_as_it_is() -> None:
    each = groups()
    with StreamedVerdicts(prompts(), 3, told, CPU) as verdicts:
        verdicts.add(1, each[0])
        with pytest.raises(ValueError, match=r"told of 2 completions of prompt 2; call it once .* with all 3"):
            verdicts.add(2, each[2][:2])
        verdicts.finish(each)
        judged, _ = verdicts.result()
    assert [result.extracted for result in judged.results] == list(judged.texts) == TEXTS


def thread_of(verdicts: StreamedVerdicts) -> threading.Thread:
    (thread,) = verdicts._thread._threads
    return thread


def test_what_the_thread_raises_is_raised_by_result() -> None:
    def broken(_: Sampled) -> Judged:
        raise LookupError("out of order")

    verdicts = StreamedVerdicts(prompts(), 3, broken, CPU)
    with verdicts:
        verdicts.add(0, groups()[0])
        verdicts.finish(groups(), wait=True)
        with pytest.raises(LookupError, match="out of order"):
            verdicts.result()
    thread_of(verdicts).join(PATIENCE)
    assert not thread_of(verdicts).is_alive()


@pytest.mark.parametrize("late", [True, False])
def test_a_rollout_that_fails_waits_for_nothing_and_hides_nothing(late: bool, caplog: pytest.LogCaptureFixture) -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def broken(sampled: Sampled) -> Judged:
        calls.append(len(sampled.prompts))
        begun.set()
        assert go.wait(PATIENCE)
        raise LookupError("out of order")

    def rollout(verdicts: StreamedVerdicts) -> None:
        with verdicts:
            verdicts.add(0, groups()[0])
            assert begun.wait(PATIENCE)
            if not late:
                go.set()
                verdicts._calls[0].wait()
            verdicts.add(1, groups()[1])
            raise MemoryError

    verdicts = StreamedVerdicts(prompts(), 3, broken, CPU)
    with pytest.raises(MemoryError):
        rollout(verdicts)
    # Left while the reward was at work, or after it had failed.
    assert thread_of(verdicts).is_alive() or not late
    assert ("the reward had failed as well" in caplog.text) != late
    go.set()
    thread_of(verdicts).join(PATIENCE)
    assert not thread_of(verdicts).is_alive()
    assert calls == [1]  # what had not begun is dropped


def test_an_interrupt_leaves_no_thread_behind_wherever_it_falls() -> None:
    """A lock taken by `Condition.__enter__`, by contrast, can stay held, and the thread waits for it for ever."""
    two, each = prompts()[:2], groups()[:2]

    def act(interrupting: Callable[[], AbstractContextManager[Any]]) -> None:
        verdicts = StreamedVerdicts(two, 3, told, CPU)
        try:
            with verdicts, interrupting():
                verdicts.add(1, each[1])
                verdicts.finish(each)
                assert verdicts.result()[0].texts == tuple(TEXTS[:6])
        finally:
            thread_of(verdicts).join(PATIENCE)
            assert not thread_of(verdicts).is_alive()

    assert everywhere(act, "lit_vlaa/streamed_reward.py", "lit_vlaa/tasks.py", "/threading.py", "/contextlib.py") > 100


@pytest.mark.parametrize("wait", [True, False])
def test_an_interrupt_ends_the_waiting(wait: bool) -> None:
    begun, go = threading.Event(), threading.Event()

    def stuck(sampled: Sampled) -> Judged:
        begun.set()
        go.wait(PATIENCE)
        return told(sampled)

    def interrupt() -> None:
        begun.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    def rollout(verdicts: StreamedVerdicts) -> None:
        with verdicts:
            user.start()
            verdicts.finish(groups(), wait=wait)
            verdicts.result()

    verdicts = StreamedVerdicts(prompts(), 3, stuck, CPU)
    user = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        rollout(verdicts)
    assert thread_of(verdicts).is_alive()  # nobody waits for it, not even Python at its end
    assert thread_of(verdicts).daemon
    go.set()
    user.join()
    thread_of(verdicts).join(PATIENCE)
