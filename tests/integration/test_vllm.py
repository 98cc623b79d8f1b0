"""Rollouts from a server that is not ours: agreement, weights that follow the learner, and all that can break."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.commands import lit
from helpers.launch import ROOT
from helpers.modules import EvaluatedData, fit, make_module, quiet_trainer
from helpers.resumable import PlacedData
from helpers.samples import mixed_prompts, tiny_backbone
from helpers.scripted_http import Reply, Seen, closed_port, scripted
from helpers.tiny_vllm import TinyVLLM, tiny_vllm
from helpers.vllm_runs import generator
from lit_vlaa.backbone import Backbone
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.generation import RolloutKey, VLLMGenerator
from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.generation.vllm import READ_VERSION
from lit_vlaa.generation.vllm.agreement import Agreement, compare
from lit_vlaa.generation.vllm.server import LOADING
from lit_vlaa.types import Completion, Prompt, SamplingParams

KEY = RolloutKey(seed=7, step=3)
PARAMS = SamplingParams(max_new_tokens=10, temperature=0.8)
SHORT = SamplingParams(max_new_tokens=4, temperature=0.8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def backbone() -> Backbone:
    # A sharper head than at initialisation: with a flat one every model agrees with every other.
    model = tiny_backbone()
    with torch.no_grad():
        next(model.lm_head.parameters()).mul_(4.0)
    return model.eval()


def ask(
    engine: VLLMGenerator, backbone: Backbone, prompts: list[Prompt] | None = None, **options: Any
) -> list[list[Completion]]:
    settings: dict[str, Any] = {"group_size": 2, "params": PARAMS, "key": KEY, **options}
    return engine.generate(backbone, mixed_prompts(backbone) if prompts is None else prompts, **settings)


def single(backbone: Backbone) -> list[Prompt]:
    return mixed_prompts(backbone)[:1]


def tokens(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids.tolist() for completion in group] for group in groups]


def pushes(server: TinyVLLM) -> int:
    return len(server.loads)


def test_completions_with_the_learners_logprobs(backbone: Backbone, tmp_path: Path) -> None:
    prompts = mixed_prompts(backbone)
    told: list[int] = []
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path))
        engine.prepare()
        groups = ask(engine, backbone, prompts, on_group=lambda index, _: told.append(index))
        assert sorted(told) == [0, 1, 2, 3]
        ask(engine, backbone, prompts)
        assert pushes(server) == 1  # the weights are there
        images = set(server.images)
    assert {size for prompt in prompts for size in prompt.image_sizes} == images
    # The generator looks at some only.
    apart = [compare(backbone, prompt, group, PARAMS) for prompt, group in zip(prompts, groups, strict=True)]
    assert max(one.largest for one in apart) < 1e-4  # float32, two implementations
    assert not [entry for entry in tmp_path.iterdir() if entry.name != "lock"]


def test_draws_depend_on_key_and_prompt_alone(backbone: Backbone, tmp_path: Path) -> None:
    prompts = mixed_prompts(backbone)
    with tiny_vllm() as (url, _), tiny_vllm() as (second, other):
        first = tokens(ask(generator(url, str(tmp_path)), backbone, prompts))
        turned = tokens(ask(generator([second, url], str(tmp_path)), backbone, prompts[::-1]))[::-1]
        assert first == turned
        assert pushes(other) == 1
        assert sum(path == "/inference/v1/generate" for path in other.calls) == 2  # every second prompt
        redrawn = tokens(ask(generator(url, str(tmp_path)), backbone, prompts, key=RolloutKey(7, 3, attempt=1)))
        assert redrawn != first


def test_greedy_completions(backbone: Backbone, tmp_path: Path) -> None:
    greedy = SamplingParams(max_new_tokens=6, temperature=0)
    with tiny_vllm() as (url, _):
        one, other = ask(generator(url, str(tmp_path)), backbone, mixed_prompts(backbone)[2:3], params=greedy)[0]
    # vLLM writes one alone.
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert compare(backbone, mixed_prompts(backbone)[2], [one], greedy).largest < 1e-4


def test_what_is_compared_adds_up() -> None:
    # (10 x 0.1 + 30 x 0.3) / 40
    both = Agreement(mean=0.1, largest=0.5, tokens=10).plus(Agreement(mean=0.3, largest=0.4, tokens=30))
    assert both.mean == pytest.approx(0.25)
    assert (both.largest, both.tokens) == (0.5, 40)
    nothing = Agreement(mean=float("nan"), largest=float("nan"), tokens=1)
    for one in (nothing, both.plus(nothing), nothing.plus(both)):
        with pytest.raises(EngineLostError):
            one.check("here", max_mean=1.0, max_largest=1.0)


def test_enough_is_compared_once(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def counting(model: Backbone, prompt: Prompt, *arguments: Any) -> Agreement:
        counted.append(len(prompt.image_sizes))
        return compare(model, prompt, *arguments)

    monkeypatch.setattr("lit_vlaa.generation.vllm.generator.compare", counting)
    monkeypatch.setattr("lit_vlaa.generation.vllm.generator._ENOUGH", 15)
    with tiny_vllm() as (url, _):
        engine = generator(url, str(tmp_path))
        for _ in range(2):
            ask(engine, backbone, mixed_prompts(backbone)[:3])
        assert len(counted) == 2  # 20 tokens with images, 20 without
        assert 0 in counted
        with torch.no_grad():
            next(backbone.visual.parameters()).mul_(1.1)
        ask(engine, backbone, mixed_prompts(backbone)[:3])
        assert len(counted) == 4  # new weights
        ask(engine, backbone, mixed_prompts(backbone)[:3], params=SamplingParams(max_new_tokens=10, temperature=0))
        assert len(counted) == 6  # what is said of greedy completions says nothing of others


def test_adapters_reach_the_server(tmp_path: Path) -> None:
    adapted = tiny_backbone(lora=LoRAConfig(rank=4)).eval()
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    with tiny_vllm() as (url, _):
        engine = generator(url, str(tmp_path), max_mean_difference=1e-4, max_difference=1e-3)
        assert len(ask(engine, adapted)) == 4
        engine._compared.clear()
        # Switched off, adapters change what the learner computes, but no weight.
        with adapted.without_adapters(), pytest.raises(EngineLostError, match="are not the learner's"):
            ask(engine, adapted)


def test_weights_of_four_bits_reach_the_server(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    adapted = tiny_backbone(lora=LoRAConfig(rank=4), quantize="nf4").eval()
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path), max_mean_difference=1e-4, max_difference=1e-3)
        ask(engine, adapted, single(adapted), params=SHORT)
        ask(engine, adapted, single(adapted), params=SHORT)
        assert pushes(server) == 1


def test_mixed_precision(backbone: Backbone, tmp_path: Path) -> None:
    with tiny_vllm() as (url, server), torch.autocast("cpu", dtype=torch.bfloat16):
        ask(generator(url, str(tmp_path), max_mean_difference=0.2), backbone, single(backbone), params=SHORT)
        query = "model.language_model.layers.0.self_attn.q_proj.weight"
        theirs, own = (dict(model.named_parameters())[query] for model in (server.model, backbone.model))
        assert torch.equal(theirs, own.bfloat16().float())


DISAGREEING: dict[str, tuple[dict[str, Any], str]] = {
    "stale weights": ({"ignores_weights": True}, "are not the learner's"),
    "wrong temperature": ({"logprobs_mode": "raw_logprobs"}, "are not the learner's.*processed_logprobs"),
    "another resize": ({"max_pixels": 56 * 56}, "images of .* pixels: start it with the limits"),
    "another prompt": ({"other_tokenizer": True}, r"the server read another prompt \(\d+ tokens\)"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_servers_that_do_not_fit(name: str, backbone: Backbone, tmp_path: Path) -> None:
    faults, message = DISAGREEING[name]
    with tiny_vllm(**faults) as (url, _), pytest.raises(EngineLostError, match=message):
        ask(generator(url, str(tmp_path)), backbone)


def test_bounds_on_the_difference(backbone: Backbone, tmp_path: Path) -> None:
    wide = {"max_mean_difference": 10.0, "max_difference": 100.0}
    with tiny_vllm(logprobs_mode="raw_logprobs") as (url, _):
        assert len(ask(generator(url, str(tmp_path), **wide), backbone)) == 4
        with pytest.raises(EngineLostError, match=r"max_mean_difference 10, max_difference 0.01"):
            ask(generator(url, str(tmp_path), **(wide | {"max_difference": 0.01})), backbone)


def test_weights_that_stop_following_are_found_later(backbone: Backbone, tmp_path: Path) -> None:
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path))
        ask(engine, backbone)
        server.ignores_weights = True
        with torch.no_grad():
            next(backbone.lm_head.parameters()).mul_(1.5)
        with pytest.raises(EngineLostError, match="an older step"):
            ask(engine, backbone)


def test_a_server_that_was_restarted_gets_the_weights_again(backbone: Backbone, tmp_path: Path) -> None:
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path))
        before = tokens(ask(engine, backbone))
        server.version = "default"
        with torch.no_grad():
            for parameter in server.model.parameters():
                parameter.zero_()
        assert tokens(ask(engine, backbone)) == before
        assert pushes(server) == 2
        server.interruptions = 3  # as in a pause for the weights of another rank
        assert tokens(ask(engine, backbone)) == before


def test_a_server_that_was_restarted_with_other_options(backbone: Backbone, tmp_path: Path) -> None:
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path))
        ask(engine, backbone)
        server.version, server.reported_mode = "default", "raw_logprobs"
        with pytest.raises(EngineLostError, match="start it with --logprobs-mode processed_logprobs"):
            ask(engine, backbone)
        # One that does not even say so is compared again.
        server.reported_mode, server.logprobs_mode = "processed_logprobs", "raw_logprobs"
        with pytest.raises(EngineLostError, match="are not the learner's"):
            ask(engine, backbone)


@pytest.mark.parametrize("stuck", ["/inference", "/collective_rpc"])
def test_a_server_that_accepts_and_never_answers(stuck: str, backbone: Backbone, tmp_path: Path) -> None:
    """One request runs out of its time, once: not each of its tries, in each round."""
    asked: list[str] = []
    over = threading.Event()
    with tiny_vllm() as (_, server):

        def silent(seen: Seen) -> Reply:
            if not seen.path.startswith(stuck) or not asked:
                return server(seen)
            asked.append(seen.path)
            over.wait(60)
            return Reply({})

        with scripted(silent) as front:
            engine = generator(front.url, str(tmp_path), retries=3)
            ask(engine, backbone, single(backbone))
            asked.append("from here on")
            engine._servers[0].client.timeout_s = 0.5
            if stuck == "/collective_rpc":
                server.version = "default"  # as if it had been restarted
            with pytest.raises(EngineLostError, match=r"no reply within .*0\.5"):
                ask(engine, backbone, single(backbone))
            over.set()
    assert len(asked) <= 2


def test_what_another_rank_failed_to_push_is_not_pushed_again(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def noted(handle: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            waits.set()
        flock(handle, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", noted)
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path))
        engine.prepare()
        server.version = LOADING
        with ThreadPoolExecutor(1) as pool:
            with engine._folder.locked() as waited:
                assert not waited
                result = pool.submit(ask, engine, backbone, single(backbone))
                assert waits.wait(60)
            with pytest.raises(EngineLostError, match="did not take new weights from another rank"):
                result.result()
        assert not pushes(server)
        assert len(ask(engine, backbone, single(backbone))) == 1  # what an earlier run left so is mended


def test_ranks_begin_with_different_servers(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_vlaa.generation.vllm.generator.own_rank", lambda: 1)
    with tiny_vllm() as (url, first), tiny_vllm() as (other_url, second):
        ask(generator([url, other_url], str(tmp_path)), backbone, single(backbone))
        assert "/inference/v1/generate" not in first.calls
        assert "/inference/v1/generate" in second.calls


def test_a_server_that_never_gets_through_is_given_up(backbone: Backbone, tmp_path: Path) -> None:
    with tiny_vllm(interruptions=1000) as (url, _), pytest.raises(EngineLostError, match="4 of 4 prompts are without"):
        ask(generator(url, str(tmp_path), retries=1), backbone)


def test_a_folder_that_the_server_cannot_see(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.tiny_vllm.Path", lambda _: tmp_path / "elsewhere")
    with (
        tiny_vllm() as (url, _),
        pytest.raises(EngineLostError, match=r"Can it read this folder \(--model.generator.w"),
    ):
        ask(generator(url, str(tmp_path / "weights"), retries=1), backbone)


def test_a_disk_without_room(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_vlaa.generation.vllm.weights.save_file", full)
    with tiny_vllm() as (url, _), pytest.raises(EngineLostError, match=r"weights_dir .* No space left on device"):
        ask(generator(url, str(tmp_path)), backbone)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "its mode": ({"reported_mode": "raw_logprobs"}, "start it with --logprobs-mode processed_logprobs"),
    "its weights": ({"quantization": "fp8"}, r"its weights are quantised \(fp8\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_seen_before_the_run(name: str, tmp_path: Path) -> None:
    faults, message = REFUSED[name]
    with tiny_vllm(**faults) as (url, _), pytest.raises(ValueError, match=message):
        generator(url, str(tmp_path)).prepare()


def test_a_server_without_its_development_mode(tmp_path: Path) -> None:
    with scripted(lambda _: Reply({"detail": "Not Found"}, status=404)) as server:
        with pytest.raises(ValueError, match="VLLM_SERVER_DEV_MODE=1"):
            generator(server.url, str(tmp_path)).prepare()
        server.script = lambda _: Reply({"weight_version": 3})
        with pytest.raises(ValueError, match="no label of weights"):
            generator(server.url, str(tmp_path)).prepare()


def test_waiting_for_a_server_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_vlaa.generation.vllm.server._LOOK_EVERY_S", 0.05)
    with closed_port() as port:
        engine = generator(f"http://127.0.0.1:{port}", str(tmp_path), start_timeout_s=0.3, retries=0)
        with pytest.raises(
            ValueError, match=r"no answer within --model.generator.start_timeout_s 0.3 \(cannot connect"
        ):
            engine.prepare()
    answers = iter([Reply({}, status=503)] * 2)
    info = {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}}
    with scripted(lambda _: next(answers, Reply({"weight_version": "default", **info}))) as server:
        generator(server.url, str(tmp_path), retries=0).prepare()
        assert len(server.seen) == 4


def test_keys_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda _: Reply({"error": "Unauthorized sesame"}, status=401)) as server:
        monkeypatch.setenv("VLLM_KEY", "sesame")
        engine = generator(server.url, str(tmp_path), api_key_env="VLLM_KEY")
        with pytest.raises(ValueError, match=r"HTTP 401: Unauthorized \*\*\*; name the variable with its key"):
            engine.prepare()
        assert server.seen[0].headers["authorization"] == "Bearer sesame"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": []}, "url needs one address"),
        ({"url": ["http://a", "http://a"]}, "url needs one address or more, each once"),
        ({"url": "ftp://a"}, "--model.generator.url must be an address"),
        ({"concurrency": 0}, "--model.generator.concurrency must be at least 1"),
        ({"timeout_s": 0}, "--model.generator.timeout_s must be positive"),
        ({"retries": -1}, "--model.generator.retries"),
        ({"start_timeout_s": 0}, "--model.generator.start_timeout_s must be positive"),
        ({"max_mean_difference": 0}, "--model.generator.max_mean_difference must be positive"),
        ({"max_difference": float("nan")}, "--model.generator.max_difference must be positive"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLLMGenerator(**({"url": "http://127.0.0.1:1"} | options))


@pytest.mark.parametrize(
    ("sampling", "flag"),
    [
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"temperature": 0.001}, "temperature 0.001"),
        ({"temperature": 2.5}, "temperature 2.5"),
    ],
    ids=["top_p", "top_k", "cold", "hot"],
)
def test_sampling_that_vllm_would_report_otherwise(sampling: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=f"--model.sampling.*{flag}"):
        make_module("grpo", generator=VLLMGenerator(url="http://127.0.0.1:1"), sampling=sampling)


def test_the_shipped_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--config={ROOT}/configs/{name}.yaml" for name in ("grpo", "generator/vllm")]
    assert lit("fit", *files, "--print_config") == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["generator"]["class_path"] == "lit_vlaa.generation.VLLMGenerator"
    engine = VLLMGenerator(**model["generator"]["init_args"])
    engine.check_sampling(SamplingParams(**model["sampling"]))
    page = (ROOT / "docs" / "howto" / "vllm.md").read_text()
    limits = {name: model["backbone"][name] for name in ("min_pixels", "max_pixels")}
    assert f"--mm-processor-kwargs '{json.dumps(limits)}'" in page
    assert READ_VERSION in page


def test_requests_under_way_are_bounded(backbone: Backbone, tmp_path: Path) -> None:
    prompts = mixed_prompts(backbone)
    with tiny_vllm() as (url, server):
        engine = generator(url, str(tmp_path), concurrency=1)
        told: list[int] = []
        ask(engine, backbone, prompts, on_group=lambda index, _: told.append(index))
        assert told == [0, 1, 2, 3]  # one after the other
        assert ask(engine, backbone, []) == []
        assert pushes(server) == 1


def test_a_reply_without_end(backbone: Backbone, tmp_path: Path) -> None:
    with tiny_vllm() as (_, server):

        def endless(seen: Seen) -> Reply:
            return Reply(b" " * 2**20) if seen.path.startswith("/inference") else server(seen)

        with scripted(endless) as front, pytest.raises(EngineLostError, match=r"the reply is longer than \d+ bytes"):
            ask(generator(front.url, str(tmp_path)), backbone)


def test_grpo_trains_by_a_server_and_goes_on_after_it_was_gone(tmp_path: Path) -> None:
    """The weights follow the learner from step to step; a server that dies ends the run with nothing lost."""
    options: dict[str, Any] = {"sampling": {"max_new_tokens": 6}, "group_size": 2}
    with tiny_vllm() as (url, server):
        whole = fit(make_module("grpo", generator=generator(url, str(tmp_path)), **options), PlacedData("grpo"))
        assert whole["steps"] == 6  # three rollouts of two optimiser steps
        assert len(set(server.loads)) == pushes(server) == 3
    with tiny_vllm() as (_, server):

        def dying(seen: Seen) -> Reply:
            gone = pushes(server) == 2 and seen.path.startswith("/inference")
            return Reply({}, status=500) if gone else server(seen)

        with scripted(dying) as front:
            module = make_module("grpo", generator=generator(front.url, str(tmp_path), retries=1), **options)
            with pytest.raises(RunStoppedError, match=r"HTTP 500.*Go on with --ckpt_path"):
                fit(module, PlacedData("grpo"), default_root_dir=str(tmp_path))
        assert module.global_step == 2  # the second rollout was lost, no step
    with tiny_vllm() as (url, _):
        again = make_module("grpo", generator=generator(url, str(tmp_path)), **options)
        trainer = quiet_trainer(default_root_dir=str(tmp_path))
        trainer.fit(again, PlacedData("grpo"), ckpt_path=str(tmp_path / "checkpoints" / "stopped.ckpt"))
    assert trainer.global_step == 6
    for name, parameter in again.backbone.named_parameters():
        value = parameter.detach().double()
        assert [float(value.sum()), float(value.norm())] == whole["weights"][name]


def test_an_evaluation_ends_with_the_reason(tmp_path: Path) -> None:
    with closed_port() as port:
        engine = generator(f"http://127.0.0.1:{port}", str(tmp_path), start_timeout_s=0.2, retries=0)
        engine.prepare = lambda: None  # type: ignore[method-assign]  # the server dies behind it
        module = make_module("grpo", generator=engine, sampling={"max_new_tokens": 4})
        with pytest.raises(EngineLostError, match="no answer within"):
            quiet_trainer().validate(module, EvaluatedData("grpo"), verbose=False)
