"""The in-process reward model on a GPU: weights from page-locked memory, there for the time of a call only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.reward_models import ANSWERS, REQUESTS, CardScorer, expected, save_reward_model, scorer_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward_model"))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(("dtype", "gap"), [("float32", 0.3), ("bfloat16", 1.0)])
def test_scores_are_the_cards_on_the_cpu_in_float32(folder: Path, dtype: str, gap: float, offload: bool) -> None:
    """The scores spread over 35; the patch embedding may run in TF32, which keeps ten bits."""
    scorer = scorer_of(folder, dtype=dtype, offload=offload)
    for budget in (100, 8192):
        scorer._max_tokens_per_batch = budget
        assert scorer(REQUESTS, ANSWERS) == pytest.approx(expected(CardScorer(folder)), abs=gap)


def test_an_offloaded_model_lies_in_pinned_memory_and_leaves_the_gpu_as_it_was(folder: Path) -> None:
    scorer = scorer_of(folder)
    scorer.prepare()
    model = scorer._ready()
    assert all(p.is_pinned() and p.device.type == "cpu" for p in model.parameters())
    own = {name: p.data_ptr() for name, p in model.named_parameters()}
    scorer(REQUESTS, ANSWERS)  # libraries take workspaces on first use
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scorer(REQUESTS, ANSWERS)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + size
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == own


def test_a_resident_model_stays(folder: Path) -> None:
    scorer = scorer_of(folder, offload=False)
    scorer(REQUESTS, ANSWERS)
    own = {name: p.data_ptr() for name, p in scorer._ready().named_parameters()}
    scorer(REQUESTS, ANSWERS)
    assert {p.device.type for p in scorer._ready().parameters()} == {"cuda"}
    assert {name: p.data_ptr() for name, p in scorer._ready().named_parameters()} == own


@pytest.mark.parametrize("offload", [True, False])
def test_what_a_trainer_has_open_changes_nothing(folder: Path, offload: bool) -> None:
    exact = scorer_of(folder)(REQUESTS, ANSWERS)
    state, gpu_state = torch.get_rng_state(), torch.cuda.get_rng_state()
    scorer = scorer_of(folder, offload=offload)
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        assert scorer(REQUESTS, ANSWERS) == pytest.approx(exact, abs=1e-3)
    assert scorer(REQUESTS, ANSWERS) == pytest.approx(exact, abs=1e-3)
    assert torch.get_rng_state().equal(state)
    assert torch.cuda.get_rng_state().equal(gpu_state)
