"""What `VLLMGenerator` uses of a vLLM server, over the tiny model in transformers, with nothing of the library's.

It prepares images, expands placeholders, finds positions and draws tokens by itself, and loads weights from files into
a model of its own, which starts with other weights than the learner's.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from helpers.scripted_http import Reply, ScriptedServer, Seen, running
from lit_vlaa.backbone.tiny import tiny_model, tiny_processor

NAMES = ("model.language_model.", "model.visual.", "lm_head.")
"""Beginnings of names that vLLM 0.33.0 maps for Qwen2.5-VL (`hf_to_vllm_mapper`)."""


@dataclass
class TinyVLLM:
    """A server's state and its faults; call it with a request."""

    min_pixels: int = 56 * 56
    max_pixels: int = 84 * 84
    logprobs_mode: str = "processed_logprobs"
    reported_mode: str = "processed_logprobs"
    """What it says of itself."""
    quantization: str | None = None
    ignores_weights: bool = False
    """Takes on labels of new weights without loading them."""
    other_tokenizer: bool = False
    """Reads every prompt as if with another vocabulary."""
    interruptions: int = 0
    """So many generations end as if the server had been paused."""
    version: str = "default"
    loads: list[str] = field(default_factory=list)
    """Names of the files of each load."""
    calls: list[str] = field(default_factory=list)
    """Paths in order of arrival."""
    paused: bool = False
    images: list[tuple[int, int]] = field(default_factory=list)
    """Sizes of images as they came."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        processor = tiny_processor(min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        self.image_token = processor.image_token_id
        size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        self.image_processor = Qwen2VLImageProcessorPil(size=size)
        self.model = tiny_model(processor).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    def __call__(self, seen: Seen) -> Reply:
        answers = {
            "/weight_info": lambda: Reply({"weight_version": self.version}),
            "/server_info": self._info,
            "/update_weight_version": lambda: self._label(seen.json["new_version"]),
            "/pause": lambda: self._pause(True),
            "/resume": lambda: self._pause(False),
            "/collective_rpc": lambda: self._load(seen.json),
            "/inference/v1/generate": lambda: self._generate(seen.json),
        }
        answer = answers.get(seen.path.partition("?")[0])
        with self._lock:
            self.calls.append(seen.path)
            return Reply({"detail": "Not Found"}, status=404) if answer is None else answer()

    def _info(self) -> Reply:
        model = {"logprobs_mode": self.reported_mode, "quantization": self.quantization}
        return Reply({"vllm_config": {"model_config": model}})

    def _label(self, version: str) -> Reply:
        self.version = version
        return Reply({"success": True, "new_version": version})

    def _pause(self, paused: bool) -> Reply:
        self.paused = paused
        return Reply({"status": "paused" if paused else "resumed"})

    def _load(self, request: dict[str, Any]) -> Reply:
        assert request["method"] == "reload_weights"
        assert self.paused, "tokens of two versions would mix"
        folder = Path(request["kwargs"]["weights_path"])
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            return Reply({"detail": "Cannot find any model weights"}, status=500)
        state = {name: tensor for file in files for name, tensor in load_file(file).items()}
        self.loads.append(folder.name)
        assert all(name.startswith(NAMES) for name in state)
        if not self.ignores_weights:
            result = self.model.load_state_dict(state, strict=False)
            assert not result.unexpected_keys
            assert set(result.missing_keys) <= {"lm_head.weight"}  # tied
        return Reply({"results": [None]})

    @torch.no_grad()
    def _generate(self, request: dict[str, Any]) -> Reply:
        if self.paused:
            return Reply({"error": {"message": "paused"}}, status=503)
        params = request["sampling_params"]
        if params["temperature"] > 2 or (not params["temperature"] and params["n"] > 1):
            return Reply({"error": {"message": "temperature must be in [0, 2], n 1 when greedy"}}, status=400)
        pixels, grids, tokens = self._read(request)
        if self.other_tokenizer:
            tokens = [tokens[0], *tokens]
        rows = [self._draw(tokens, pixels, grids, params, index) for index in range(params["n"])]
        choices = [self._choice(index, *row, params) for index, row in enumerate(rows)]
        return Reply({"output_mode": "tokens", "prompt_token_ids": tokens, "choices": choices})

    def _choice(self, index: int, tokens: list[int], logprobs: list[float], params: dict[str, Any]) -> dict[str, Any]:
        ended = tokens[-1] in params["stop_token_ids"]
        content = [
            {"token_id": token, "logprob": value, "rank": 1, "top_logprobs": []}
            for token, value in zip(tokens, logprobs, strict=True)
        ]
        self.interruptions -= 1
        return {
            "index": index,
            "finish_reason": "abort" if self.interruptions >= 0 else "stop" if ended else "length",
            "stop_reason": tokens[-1] if ended else None,
            "token_ids": tokens,
            "logprobs": {"content": content},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(tokens)}],
        }

    def _read(self, request: dict[str, Any]) -> tuple[Tensor | None, Tensor | None, list[int]]:
        """Pixels, grids, and the prompt with its placeholders expanded."""
        pictures = []
        for part in request.get("content_parts", []):
            head, _, data = part["url"].partition(",")
            assert (part["type"], head) == ("image_url", "data:image/png;base64")
            pictures.append(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))
        tokens = request["token_ids"]
        assert tokens.count(self.image_token) == len(pictures)
        if not pictures:
            return None, None, tokens
        self.images += [picture.size for picture in pictures]
        features = self.image_processor(images=pictures, return_tensors="pt")
        counts = iter((features["image_grid_thw"].prod(-1) // 4).tolist())
        expanded = [one for token in tokens for one in [token] * (next(counts) if token == self.image_token else 1)]
        return features["pixel_values"], features["image_grid_thw"], expanded

    def _draw(
        self, prompt: list[int], pixels: Tensor | None, grids: Tensor | None, params: dict[str, Any], index: int
    ) -> tuple[list[int], list[float]]:
        generator = torch.Generator().manual_seed(params["seed"] + index)
        images = {} if pixels is None else {"pixel_values": pixels, "image_grid_thw": grids}
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < params["max_tokens"] and not set(tokens) & set(params["stop_token_ids"]):
            ids = torch.tensor([[*prompt, *tokens]])
            self.model.model.rope_deltas = None
            kinds = (ids == self.image_token).int()
            logits = (
                self.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **images).logits[0, -1].double()
            )
            raw = logits.log_softmax(-1)
            for token, bias in params["logit_bias"].items():
                logits[int(token)] += bias
            processed = (logits / (params["temperature"] or 1.0)).log_softmax(-1)
            greedy = params["temperature"] == 0
            token = int(processed.argmax() if greedy else processed.exp().multinomial(1, generator=generator))
            tokens.append(token)
            logprobs.append(float((processed if self.logprobs_mode == "processed_logprobs" else raw)[token]))
        return tokens, logprobs


@contextmanager
def tiny_vllm(port: int = 0, **faults: Any) -> Iterator[tuple[str, TinyVLLM]]:
    """A server that runs; gives its address and its state."""
    state = TinyVLLM(**faults)
    server = ScriptedServer(state, port)
    with running(server):
        yield server.url, state
