"""The in-process reward model against transformers called as the model card does."""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.checkpoints import as_released
from helpers.reward_models import (
    ANSWERS,
    HIDDEN,
    LARGE,
    MAX_PIXELS,
    ONE,
    REQUESTS,
    ROUNDING,
    ROWS,
    CardScorer,
    card_text,
    expected,
    request,
    save_reward_model,
    scorer_of,
)
from lit_vlaa.backbone import BackboneConfig, Processor
from lit_vlaa.backbone.value_head import ValueHeadModel
from lit_vlaa.protocols import Preparable
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rewards.scorers import RewardModelScorer
from lit_vlaa.types import ModelInputs, RewardRequest


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward_model"))


@pytest.fixture(scope="module")
def card(folder: Path) -> CardScorer:
    return CardScorer(folder)


@pytest.fixture
def scorer(folder: Path) -> RewardModelScorer:
    return scorer_of(folder)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[ModelInputs]:
    """The inputs of every forward pass that went through."""
    seen: list[ModelInputs] = []
    original = ValueHeadModel.forward

    def forward(self: ValueHeadModel, inputs: ModelInputs) -> torch.Tensor:
        result = original(self, inputs)
        seen.append(inputs)
        return result

    monkeypatch.setattr(ValueHeadModel, "forward", forward)
    return seen


@pytest.mark.parametrize("budget", [1, 80, 100_000])
def test_scores_are_the_model_cards_in_the_order_of_the_answers(
    folder: Path, card: CardScorer, passes: list[ModelInputs], budget: int
) -> None:
    scores = scorer_of(folder, max_tokens_per_batch=budget)(REQUESTS, ANSWERS)
    assert scores == pytest.approx(expected(card), abs=ROUNDING)
    assert max(expected(card)) - min(expected(card)) > 1
    shapes = [tuple(inputs.input_ids.shape) for inputs in passes]
    assert all(rows == 1 or rows * width <= budget for rows, width in shapes)
    assert len(shapes) == {1: 6, 80: 4, 100_000: 1}[budget]


def test_company_changes_scores_by_rounding_alone(scorer: RewardModelScorer) -> None:
    together = scorer(REQUESTS, ANSWERS)
    alone = [scorer([row], [answer])[0] for row, answer in zip(REQUESTS, ANSWERS, strict=True)]
    backwards = scorer(REQUESTS[::-1], ANSWERS[::-1])[::-1]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(backwards), rtol=0, atol=ROUNDING)
    assert scorer(REQUESTS, ANSWERS) == together


def test_bfloat16_comes_close_and_is_the_default(folder: Path, card: CardScorer, scorer: RewardModelScorer) -> None:
    half = RewardModelScorer(path=str(folder), max_pixels=MAX_PIXELS)
    scores = half(REQUESTS, ANSWERS)
    assert scores != scorer(REQUESTS, ANSWERS)
    # Half a per cent of the scores' spread; measured: 0.18 against float32, 0.07 against the card's way in bfloat16.
    assert scores == pytest.approx(expected(card), abs=0.5)
    assert scores == pytest.approx(expected(CardScorer(folder, torch.bfloat16)), abs=0.25)
    model = half._ready()
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert model.weight.dtype == model.bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("before", "after", "tail"),
    [
        ("{% for message", "{% for message", "\n"),
        ("<|im_end|>\n{% endfor", "<|im_end|>{% endfor", ""),
        ("{% for message", "<|im_start|>system\nYou help.<|im_end|>\n{% for message", "\n"),
    ],
    ids=["as_qwen", "nothing_after_the_turn", "system_turn_of_its_own"],
)
def test_the_template_is_the_reward_models_own(
    folder: Path, tmp_path: Path, before: str, after: str, tail: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace(before, after, 1))
    card = CardScorer(other)
    assert card_text(card.tokenizer, "q", "a", 0).endswith(f"assistant\na<|im_end|>{tail}")
    row, answer, images = ROWS[0]
    assert scorer_of(other)([row], [answer]) == pytest.approx([card(row.question, answer, images)], abs=ROUNDING)


def test_qwens_own_file_layout_loads(folder: Path, tmp_path: Path, scorer: RewardModelScorer) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    as_released(other)
    assert scorer_of(other)(REQUESTS, ANSWERS) == scorer(REQUESTS, ANSWERS)


def test_max_pixels_reaches_the_images(folder: Path, passes: list[ModelInputs]) -> None:
    row = [REQUESTS[4]]
    small, large = (scorer_of(folder, max_pixels=limit)(row, ["x"]) for limit in (56 * 56, MAX_PIXELS))
    assert small != large
    patches = [inputs.pixel_values.shape[0] for inputs in passes if inputs.pixel_values is not None]
    assert patches[0] <= 16 < patches[1] <= 36


def test_long_answers_are_cut(folder: Path, passes: list[ModelInputs]) -> None:
    scorer = scorer_of(folder, max_answer_tokens=3)
    row = REQUESTS[2]
    assert len(set(scorer([row] * 3, ["red red red", "red red red blue", "red red red" + " blue" * 10_000]))) == 1
    # Of the answer's tokens three, then the end of the turn and the newline.
    assert int(passes[0].target_mask[0].sum()) == 5
    assert scorer([row], ["red red blue"]) != scorer([row], ["red red red"])


def test_endless_answers_are_cut_before_they_are_tokenised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    original = Processor.encode_response

    def encode_response(self: Processor, text: str) -> torch.Tensor:
        given.append(text)
        return original(self, text)

    monkeypatch.setattr(Processor, "encode_response", encode_response)
    scorer_of(folder, max_answer_tokens=3)([REQUESTS[2]] * 2, ["x" * 96, "x" * 10_000_000])
    assert given == ["x" * 96, "x" * 96]


def test_images_of_a_row_are_opened_and_encoded_once(folder: Path, passes: list[ModelInputs]) -> None:
    opened: list[str] = []

    def opener(name: str) -> Callable[[], tuple[Image.Image, ...]]:
        def images() -> tuple[Image.Image, ...]:
            opened.append(name)
            return ONE

        return images

    rows = [
        RewardRequest(response="", kind="open_ended", truth="", question="What?", id=name, images=opener(name))
        for name in "aabab"
    ]
    # Rows of 26 tokens: a batch takes four, but those of one row stay together.
    scorer_of(folder, max_tokens_per_batch=4 * 26)(rows, ["1", "2", "3", "4", "5"])
    assert opened == ["a", "b"]
    assert [tuple(inputs.input_ids.shape) for inputs in passes] == [(3, 26), (2, 26)]
    assert [len(inputs.image_grid_thw) for inputs in passes if inputs.image_grid_thw is not None] == [1, 1]


def test_rows_without_an_id_keep_their_images_apart(scorer: RewardModelScorer, card: CardScorer) -> None:
    rows = [request("", "What is it?", *ONE), request("", "What is it?", *LARGE), request("", "What is it?")]
    scores = scorer(rows, ["a circle"] * 3)
    reference = [card("What is it?", "a circle", images) for images in (ONE, LARGE, ())]
    assert scores == pytest.approx(reference, abs=ROUNDING)


def test_more_rows_than_are_held_ready_at_a_time(
    scorer: RewardModelScorer, monkeypatch: pytest.MonkeyPatch, passes: list[ModelInputs]
) -> None:
    exact = torch.tensor(scorer(REQUESTS, ANSWERS))
    monkeypatch.setattr("lit_vlaa.rewards.scorers.reward_model._WINDOW", 2)
    torch.testing.assert_close(torch.tensor(scorer(REQUESTS, ANSWERS)), exact, rtol=0, atol=ROUNDING)
    assert len(passes) == 1 + 2


def test_equal_answers_get_exactly_equal_scores(scorer: RewardModelScorer, passes: list[ModelInputs]) -> None:
    answers = ["a red circle", " a red circle\n", "a red circle", "a blue circle"]
    scores = scorer([REQUESTS[0]] * 4, answers)
    assert scores[0] == scores[1] == scores[2] != scores[3]
    assert sum(inputs.input_ids.shape[0] for inputs in passes) == 2


def test_what_a_trainer_has_open_changes_nothing(
    scorer: RewardModelScorer, folder: Path, passes: list[ModelInputs]
) -> None:
    exact = scorer(REQUESTS, ANSWERS)
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        fresh = scorer_of(folder)
        fresh.prepare()
        assert fresh(REQUESTS, ANSWERS) == exact
        assert torch.is_inference_mode_enabled()
        assert not any(inputs.input_ids.is_inference() for inputs in passes)
        assert torch.is_autocast_enabled("cpu")
    assert fresh(REQUESTS, ANSWERS) == exact
    with torch.enable_grad():
        assert fresh(REQUESTS, ANSWERS) == exact
        assert torch.is_grad_enabled()
    assert torch.get_rng_state().equal(state)
    assert not any(p.requires_grad or p.is_inference() for p in fresh._ready().parameters())
    assert not any(module.training for module in fresh._ready().modules())


@pytest.mark.parametrize("offload", [True, False])
def test_offload_reaches_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch, offload: bool) -> None:
    scorer = scorer_of(folder, offload=offload)
    scorer.prepare()
    monkeypatch.setattr("lit_vlaa.rewards.scorers.reward_model._device", lambda: torch.device("meta"))
    with pytest.raises(NotImplementedError):
        scorer([REQUESTS[2]], ["two"])
    assert {parameter.device.type for parameter in scorer._ready().parameters()} == {"cpu" if offload else "meta"}


def test_a_scorer_is_pickled_without_its_model(scorer: RewardModelScorer, folder: Path) -> None:
    assert isinstance(scorer, Preparable)
    cold = pickle.dumps(scorer)
    exact = scorer(REQUESTS, ANSWERS)
    warm = pickle.dumps(scorer)
    assert max(len(cold), len(warm)) < 4000
    assert pickle.loads(cold)(REQUESTS, ANSWERS) == pickle.loads(warm)(REQUESTS, ANSWERS) == exact  # noqa: S301


def test_nothing_to_score_loads_nothing(tmp_path: Path) -> None:
    assert scorer_of(tmp_path / "absent")([], []) == []


def test_revision_is_the_hubs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def head(config: BackboneConfig) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(config.revision)
        return torch.zeros(1, HIDDEN), torch.zeros(1)

    monkeypatch.setattr("lit_vlaa.backbone.value_head._read_head", head)
    scorer_of(folder, revision="v1.0").prepare()
    assert asked == ["v1.0"]


def test_rewards_follow_the_papers_formula(scorer: RewardModelScorer, card: CardScorer) -> None:
    truth = "a green square"
    rows = [(REQUESTS[i].question, ANSWERS[i], ROWS[i][2]) for i in (0, 1, 2, 5)]
    requests = [
        RewardRequest(
            response=f"<think>so</think><answer>{answer}</answer>",
            kind="open_ended",
            truth=truth,
            question=question,
            id=f"row-{index}",
            images=(lambda images=images: images) if images else None,  # type: ignore[misc]
        )
        for index, (question, answer, images) in enumerate(rows)
    ]
    expected_rewards = []
    for question, answer, images in rows:
        gap = card(question, answer, images) - card(question, truth, images)
        expected_rewards.append(1 - math.exp(-gap * 0.1) if gap > 0 else 0.0)
    reward = MixedReward(RewardConfig(open_ended_scale=0.1), scorer)
    for _ in range(2):
        results = reward(requests)
        assert [result.status for result in results] == ["ok"] * 4
        assert [result.value for result in results] == pytest.approx(expected_rewards, abs=1e-5)
    assert 0.0 in expected_rewards
    assert max(expected_rewards) > 0.1


def test_the_place_of_the_image_in_the_question_is_no_text(scorer: RewardModelScorer) -> None:
    bare, marked = (request("one", question, *ONE) for question in ("What is it?", "<image>\nWhat is it?"))
    assert scorer([bare], ["a circle"]) == scorer([marked], ["a circle"])
