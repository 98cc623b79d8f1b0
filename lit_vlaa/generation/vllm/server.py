"""One vLLM server: whether it fits, which weights it has, and how it gets others.

Weights go by vLLM's own endpoints of its development mode. Pausing aborts what runs and empties the caches of prompts
and images, so that nothing that old weights computed is left; tokens carry the label of the weights that drew them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.generation.vllm import READ_VERSION
from lit_vlaa.rewards.scorers.client import Body, JsonClient
from lit_vlaa.rewards.scorers.wire import RequestError, printable

OURS = "lit-vlaa-"
"""Begins the labels of weights that runs of this program gave a server."""

LOADING = f"{OURS}loading"
"""Label while weights change, so that no tokens pass for those of the weights before or after."""

_LOOK_EVERY_S = 2.0
_ONE_ANSWER_S = 10.0

_DEV_MODE = f"start vLLM {READ_VERSION} or later with the environment variable VLLM_SERVER_DEV_MODE=1"


class Server:
    """A server by its address."""

    def __init__(self, client: JsonClient) -> None:
        """Connects to nothing yet.

        Args:
            client: Its address, key and limits.
        """
        self.client = client
        self._once = copy.copy(client)
        self._once.retries = 0

    @property
    def where(self) -> str:
        """The option and the address, for messages."""
        return f"{self.client.option} {self.client.url}"

    def wait(self, seconds: float, *, began: float | None = None) -> str:
        """The label of its weights, as soon as it answers.

        Args:
            seconds: Most to wait for a server that cannot be reached, or that is not ready.
            began: When the waiting began, by `time.monotonic`; None for now. It is asked once even if that is long ago.

        Raises:
            EngineLostError: If it does not answer in time, or not as vLLM does.
        """
        end = (time.monotonic() if began is None else began) + seconds
        told = False
        while True:
            try:
                left = max(_ONE_ANSWER_S, end - time.monotonic())
                label = self._once.ask("GET", "/weight_info", within_s=left).get("weight_version")
            except RequestError as error:
                if error.status in {404, 405}:
                    raise EngineLostError(f"{self.where}: {_DEV_MODE} ({error})") from error
                if not error.retry:
                    raise self.lost(error) from error
                if time.monotonic() >= end:
                    raise EngineLostError(
                        f"{self.where}: no answer within --model.generator.start_timeout_s {seconds:g} ({error})"
                    ) from error
                if not told:
                    told = True
                    rank_zero_info(f"{self.where}: waiting up to {seconds:g} s for the server ({error})")
                time.sleep(min(_LOOK_EVERY_S, max(0.0, end - time.monotonic())))
                continue
            if not isinstance(label, str):
                raise EngineLostError(f"{self.where}: no label of weights in /weight_info; {_DEV_MODE}")
            return label

    def check(self) -> None:
        """Looks whether the server was started as it has to be.

        Raises:
            EngineLostError: If not; the message names the server's flag.
        """
        try:
            config = self._ask("GET", "/server_info?config_format=json").get("vllm_config")
        except RequestError as error:
            raise self.lost(error) from error
        model: Any = config.get("model_config") if isinstance(config, dict) else None
        if not isinstance(model, dict):
            raise EngineLostError(f"{self.where}: /server_info does not tell the model's settings; {_DEV_MODE}")
        mode, quantization = model.get("logprobs_mode"), model.get("quantization")
        if mode != "processed_logprobs":
            raise EngineLostError(
                f"{self.where}: its logprobs_mode is {printable(str(mode))[:40]}: start it with "
                "--logprobs-mode processed_logprobs, so that temperature and bans count"
            )
        if quantization is not None:
            raise EngineLostError(
                f"{self.where}: its weights are quantised ({printable(str(quantization))[:40]}), which those of the "
                "learner are not: start it without --quantization"
            )

    def push(self, label: str, folder: Callable[[], Path]) -> None:
        """Gives it new weights.

        Args:
            label: What they are called from now on.
            folder: Writes their files, and says where.

        Raises:
            EngineLostError: If the server cannot load them.
        """
        path = str(folder())
        try:
            self._label(LOADING)
            self._ask("POST", "/pause?mode=abort&clear_cache=true", dict)
            kwargs = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            self._ask("POST", "/collective_rpc", lambda: kwargs)
            self._ask("POST", "/resume", dict)
            self._label(label)
        except RequestError as error:
            raise EngineLostError(
                f"{self.where}: it did not take new weights from {path}: {error}. Can it read this folder "
                "(--model.generator.weights_dir), and has it the model of --model.backbone.path?"
            ) from error

    def lost(self, error: RequestError) -> EngineLostError:
        """What to raise for a request without a usable reply."""
        hint = ""
        if error.status in {401, 403}:
            hint = "; name the variable with its key by --model.generator.api_key_env"
        elif error.status == 404:
            hint = f"; {_DEV_MODE}"
        return EngineLostError(f"{self.where}: {error}{hint}")

    def _label(self, label: str) -> None:
        self._ask("POST", "/update_weight_version", lambda: {"new_version": label})

    def _ask(self, method: str, path: str, body: Body | None = None) -> dict[str, Any]:
        return self.client.ask(method, path, body, within_s=self.client.timeout_s)
