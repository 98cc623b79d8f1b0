"""Ranks that share a server, and one that loses its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.launch import run_ranks
from helpers.scripted_http import Reply, Seen, scripted
from helpers.tiny_vllm import tiny_vllm
from helpers.vllm_runs import train_by


def test_two_ranks_share_a_server(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with tiny_vllm() as (url, _):
        alone = train_by(url, str(tmp_path))
    with tiny_vllm() as (url, server), tiny_vllm() as (second_url, sharded):
        urls = {"ddp": url, "fsdp2": second_url}
        first, second = run_ranks("helpers.vllm_runs:train_under", urls=urls, weights_dir=str(tmp_path))
    for loads in (server.loads, sharded.loads):
        assert len(set(loads)) == len(loads) == 3  # one of the ranks pushes the weights of each rollout
    for strategy in urls:
        own, other = first[strategy], second[strategy]
        assert own["steps"] == other["steps"] == alone["steps"] == 6
        assert own["weights"] == other["weights"]
        for entry, expected in zip(own["logged"], alone["logged"], strict=True):
            assert entry["rollout/length"] == pytest.approx(expected["rollout/length"])
            assert entry["policy/loss"] == pytest.approx(expected["policy/loss"], abs=1e-4)


def test_a_rank_that_loses_its_server_stops_both(tmp_path: Path) -> None:
    with tiny_vllm() as (url, server):

        def broken(seen: Seen) -> Reply:
            return Reply({}, status=500) if seen.path.startswith("/inference") else server(seen)

        with scripted(broken) as front:
            ranks = run_ranks(
                "helpers.vllm_runs:all_stopped_by",
                urls=[url, front.url],
                weights_dir=str(tmp_path / "weights"),
                folder=str(tmp_path / "run"),
                strategy="ddp",
                devices=2,
            )
    (rollout, (evaluation, kept), prediction), (other_rollout, (other_evaluation, _), other_prediction) = ranks
    assert (rollout, evaluation, prediction) == (other_rollout, other_evaluation, other_prediction)
    for reason in (rollout, evaluation, prediction):
        assert f"{front.url}: HTTP 500" in reason
        assert ("Go on with --ckpt_path" in reason) == (reason is not prediction)
    assert kept == 1  # of three: the rank whose server lives keeps its answer, and stops at once
    assert (tmp_path / "run" / "checkpoints" / "stopped.ckpt").is_file()
