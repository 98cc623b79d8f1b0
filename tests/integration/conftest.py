"""Generated rows and a checkpoint that has learnt the form of an answer, made once for all integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import checkpoint, command, lit

TEST_ROWS = 27
"""Odd, so that two ranks need a row of padding; three rows from each of nine sources."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 rows to learn from, 48 to practise on, 27 to validate on and to test on."""
    root = tmp_path_factory.mktemp("data") / "synthetic"
    counts = ["--sft-count=480", "--grpo-count=48", f"--test-count={TEST_ROWS}", "--seed=3"]
    assert lit("data", "synthetic", f"--output-dir={root}", *counts, "--progress=false") == 0
    return root


@pytest.fixture(scope="session")
def sft_root(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of an SFT run of 40 steps, enough for an answer in most completions."""
    root = tmp_path_factory.mktemp("sft")
    options = {"trainer__max_steps": 40, "trainer__max_epochs": 2, "model__optim__lr": 2e-3}
    assert lit(*command("fit", "sft", dataset, root, **options)) == 0
    return root


@pytest.fixture(scope="session")
def sft_checkpoint(sft_root: Path) -> Path:
    """The checkpoint at the end of `sft_root`."""
    return checkpoint(sft_root)
