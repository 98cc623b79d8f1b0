"""For all tests: no network, few threads, shared examples, the same generated ones each time, GPU tests on GPUs."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from contextlib import suppress
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

gc.disable()  # until all tests are imported

with suppress(ImportError):  # the benchmarks' environment has none
    from hypothesis import HealthCheck, settings

    slow_is_fine = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=slow_is_fine)
    settings.load_profile("same")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of xdist's workers, which share the machine's cores."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where no GPU is visible; orders files for xdist's workers.

    Files with tests marked `slow` come first, then those with most tests, so that no worker ends long after the others.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU is visible on this machine"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Takes modules and tests, a million objects, out of what the garbage collector goes through again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_seed_of_an_earlier_run() -> None:
    """`seed_everything` leaves its seed in the environment, where rollouts without one of their own look for it."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shared_examples() -> Path:
    """Folder with example rows in the published data's own form."""
    path = SHARED / "data" / "vlaa_examples"
    if not path.is_dir():
        pytest.skip(f"example rows are not here: {path} does not exist")
    return path
