"""For all tests: no network, few threads, shared examples, GPU tests only where there is a GPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before anything imports torch, transformers or datasets; the processes that tests start inherit these.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    JSONARGPARSE_DEPRECATION_WARNINGS="off",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# A shell's background job ignores Ctrl-C, and so would every process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of xdist's workers, which share the machine's cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where no GPU is visible."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU is visible on this machine"))


@pytest.fixture(scope="session")
def shared_examples() -> Path:
    """Folder with example rows in the published data's own form."""
    path = SHARED / "data" / "vlaa_examples"
    if not path.is_dir():
        pytest.skip(f"example rows are not here: {path} does not exist")
    return path
