"""The generator: weights out to the servers, prompts out, completions checked and handed on as prompts finish."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import distributed

from lit_vlaa.backbone.model import Backbone
from lit_vlaa.generation.protocol import EngineLostError, OnGroup, RolloutKey
from lit_vlaa.generation.vllm import weights
from lit_vlaa.generation.vllm.agreement import Agreement, compare
from lit_vlaa.generation.vllm.asking import Request, ask_all
from lit_vlaa.generation.vllm.server import LOADING, OURS, Server
from lit_vlaa.generation.vllm.wire import Question, UnfitReplyError
from lit_vlaa.rewards.scorers.client import JsonClient
from lit_vlaa.rewards.scorers.wire import RequestError
from lit_vlaa.types import Completion, Prompt, SamplingParams

_log = logging.getLogger(__name__)

_LEAST_TEMPERATURE = 0.01
_MOST_TEMPERATURE = 2.0

_COMPARED = 4
"""Completions of a prompt that the learner scores too."""
_ENOUGH = 256
"""Tokens after which no more prompts are compared: of completions that are all but certain, few tell nothing."""


class VLLMGenerator:
    """Rollouts by running vLLM servers, with the learner's weights (implements `Generator`; experimental).

    Never run against a real vLLM or on a GPU. See docs/howto/vllm.md for how to start the server.
    """

    may_be_lost = True

    def __init__(
        self,
        *,
        url: str | list[str],
        weights_dir: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = 64,
        timeout_s: float = 1500.0,
        retries: int = 4,
        backoff_s: float = 1.0,
        start_timeout_s: float = 600.0,
        max_mean_difference: float = 0.05,
        max_difference: float = 2.0,
    ) -> None:
        """Keeps the settings.

        Args:
            url: Address of the server, such as `http://127.0.0.1:8000`; a list of several that share out the prompts.
            weights_dir: Folder for the learner's weights on their way, which every server sees at the same path and
                only you can write to; one in main memory (/dev/shm) is fastest. Null for one below the system's folder
                of temporary files.
            api_key_env: Environment variable with the server's key; null for none.
            concurrency: Prompts under way at a time, on each server from each rank.
            timeout_s: Seconds for one request with its repetitions: all completions of a prompt, or loading weights. A
                prompt that takes longer ends the run. Keep it below half an hour, after which ranks that have finished
                give up waiting for this one.
            retries: Tries of a request after the first one, and rounds of requests that are made again after a server
                was restarted or paused.
            backoff_s: Seconds before the first repetition; they double from one to the next, up to a minute.
            start_timeout_s: Seconds to wait for a server that starts, before the run and within it.
            max_mean_difference: Largest mean difference between the server's and the learner's log-probabilities of
                tokens, in nats; above it the run stops before it learns from them.
            max_difference: Largest difference of a single token.

        Raises:
            ValueError: If a setting cannot work.
        """
        urls = [url] if isinstance(url, str) else list(url)
        if not urls or len(set(urls)) != len(urls):
            raise ValueError("--model.generator.url needs one address or more, each once")
        for name, value in (
            ("start_timeout_s", start_timeout_s),
            ("max_mean_difference", max_mean_difference),
            ("max_difference", max_difference),
        ):
            if not 0 < value < float("inf"):
                raise ValueError(f"--model.generator.{name} must be positive, got {value}")
        self._servers = [
            Server(
                JsonClient(
                    url=address,
                    option="--model.generator.url",
                    api_key_env=api_key_env,
                    concurrency=concurrency,
                    timeout_s=timeout_s,
                    retries=retries,
                    backoff_s=backoff_s,
                )
            )
            for address in urls
        ]
        self._folder = weights.WeightFolder(weights_dir)
        self._rounds = retries + 1
        self._start_timeout_s = start_timeout_s
        self._max_mean, self._max_largest = max_mean_difference, max_difference
        self._pushed = False
        self._compared: dict[tuple[int, bool, float], tuple[str, Agreement]] = {}
        """What was compared of the latest version of the weights, by server, whether with images, and temperature."""

    def prepare(self) -> None:
        """Waits for the servers, and looks whether they were started as they have to be.

        Raises:
            ValueError: If one cannot be used; the message names the flag and the remedy.
        """
        self._folder.make()
        try:
            for server in self._servers:
                server.wait(self._start_timeout_s)
                server.check()
        except EngineLostError as error:
            raise ValueError(str(error)) from error

    def check_sampling(self, params: SamplingParams) -> None:
        """Refuses a sampling under which the server's log-probabilities would not be those of the learner.

        Raises:
            ValueError: If it is one; the message names the flag.
        """
        if params.top_k or params.top_p < 1:
            raise ValueError(
                "--model.sampling.top_p and top_k do not work with VLLMGenerator: vLLM gives log-probabilities after "
                "them, the learner computes those before them; leave them at 1 and 0"
            )
        if 0 < params.temperature < _LEAST_TEMPERATURE or params.temperature > _MOST_TEMPERATURE:
            raise ValueError(
                f"--model.sampling.temperature {params.temperature:g}: vLLM raises temperatures below "
                f"{_LEAST_TEMPERATURE} to it, and refuses those above {_MOST_TEMPERATURE:g}; take 0 (greedy), or one "
                f"from {_LEAST_TEMPERATURE} to {_MOST_TEMPERATURE:g}"
            )

    def generate(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        params: SamplingParams,
        key: RolloutKey,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        """Samples `group_size` completions for each prompt (see `Generator`).

        Raises:
            ValueError: If the sampling is one for which a server's log-probabilities would be others.
            EngineLostError: If a server cannot be used any more, or does not agree with the learner.
        """
        self.check_sampling(params)
        if not prompts:
            return []
        mixed = _mixed_precision(backbone.device)
        version = weights.version(backbone.model, mixed)
        vocabulary = int(backbone.lm_head.weight.shape[0])  # type: ignore[index]
        questions = [Question(prompt, group_size, params, key, version, vocabulary) for prompt in prompts]
        groups: list[list[Completion]] = [[] for _ in prompts]
        trouble = ""
        for _ in range(self._rounds):
            self._bring(version, backbone, mixed)
            left = [index for index, group in enumerate(groups) if not group]
            with closing(self._round(questions, left, backbone)) as answers:
                for index, server, found in answers:
                    if isinstance(found, str):
                        trouble = found
                        continue
                    self._compare(server, questions[index], found, backbone)
                    groups[index] = found
                    if on_group is not None:
                        on_group(index, found)
            missing = sum(not group for group in groups)
            if not missing:
                return groups
            _log.warning("%d of %d prompts are asked again: %s", missing, len(groups), trouble)
        raise EngineLostError(f"{missing} of {len(groups)} prompts are without completions: {trouble}")

    def _round(
        self, questions: Sequence[Question], left: Sequence[int], backbone: Backbone
    ) -> Generator[tuple[int, int, list[Completion] | str]]:
        """Asks once for what is left; gives prompt, server, and the completions or why they are to be asked again.

        Raises:
            EngineLostError: If a reply or a refusal says that asking again is of no use.
        """
        processor = backbone.processor
        rank = own_rank()  # so that ranks with few prompts do not all begin with the first server
        requests = [
            Request(
                index,
                (index + rank) % len(self._servers),
                partial(questions[index].body, processor),
                questions[index].most_bytes(),
            )
            for index in left
        ]
        with closing(ask_all(self._servers, requests)) as answers:
            for request, reply in answers:
                server = self._servers[request.server]
                if isinstance(reply, RequestError):
                    if not reply.retry:
                        raise server.lost(reply) from reply
                    yield request.index, request.server, f"{server.where}: {reply}"
                    continue
                try:
                    group = questions[request.index].read(reply, processor)
                except UnfitReplyError as error:
                    raise EngineLostError(f"{server.where}: {error}") from error
                if group is None:
                    why = "it was interrupted, or another program or another rank gave it other weights"
                    yield request.index, request.server, f"{server.where}: {why}"
                else:
                    yield request.index, request.server, group

    def _bring(self, version: str, backbone: Backbone, dtype: torch.dtype | None) -> None:
        """Sees to it that all servers have these weights; one rank pushes them, the others wait and look again.

        Where that rank fails, the others neither try the same again nor wait as long as it did, each after the other.
        """
        began = time.monotonic()
        labels = [server.wait(self._start_timeout_s) for server in self._servers]
        for number, label in enumerate(labels):
            if not label.startswith(OURS):
                self._look_anew(number)
        if all(label == version for label in labels):
            return
        try:
            self._folder.make()
        except ValueError as error:
            raise EngineLostError(str(error)) from error
        with self._folder.locked() as waited:
            for server in self._servers:
                label = server.wait(self._start_timeout_s, began=began)
                if waited:
                    if label == LOADING:
                        raise EngineLostError(f"{server.where}: it did not take new weights from another rank")
                    began = time.monotonic()  # what the other rank took is no time that the servers did not answer
                if label != version:
                    started = time.perf_counter()
                    server.push(version, partial(self._folder.put, version, backbone.model, dtype))
                    _tell(self._pushed, f"{server.where}: has new weights after {time.perf_counter() - started:.1f} s")
                    self._pushed = True

    def _look_anew(self, number: int) -> None:
        """Checks a server that was started since it was used last, perhaps with other options."""
        self._servers[number].check()
        for case in [case for case in self._compared if case[0] == number]:
            del self._compared[case]

    def _compare(self, server: int, question: Question, group: Sequence[Completion], backbone: Backbone) -> None:
        """Compares the first completions of new weights with the learner, with and without images."""
        case = (server, bool(question.prompt.image_sizes), question.params.temperature)
        version, before = self._compared.get(case, ("", None))
        if version == question.version and before is not None and before.tokens >= _ENOUGH:
            return
        found = compare(backbone, question.prompt, group[:_COMPARED], question.params)
        if version == question.version and before is not None:
            found = before.plus(found)
        found.check(self._servers[server].where, max_mean=self._max_mean, max_largest=self._max_largest)
        shown = "prompts with images" if case[1] else "text alone"
        _tell(before is not None, f"{self._servers[server].where}: agrees with the learner on {shown} ({found})")
        self._compared[case] = (question.version, found)


def own_rank() -> int:
    """This process's number among those that train together."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _tell(again: bool, message: str) -> None:
    """Shows what happens for the first time."""
    if again:
        _log.debug("%s", message)
    else:
        rank_zero_info(message)


def _mixed_precision(device: torch.device) -> torch.dtype | None:
    kind: Any = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
