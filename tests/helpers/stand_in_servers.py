"""Servers that pages name: a chat model that judges answers or builds data, a scoring server, and vLLM for rollouts.

Pages give the addresses at which their readers would start them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from helpers.builds import completion, default_answer, text_of
from helpers.scorers import Longer
from helpers.scripted_http import Reply, Seen, running, scripted
from helpers.tiny_vllm import tiny_vllm
from lit_vlaa.rewards.scorers.server import ScoringServer

CHAT = tuple(f"http://127.0.0.1:{port}/v1" for port in (8000, 8001, 8002))
SCORER = "http://127.0.0.1:8765"
ROLLOUTS = "http://127.0.0.1:8000"
_REASONER, _TEXT_MODEL = "deepseek-ai/DeepSeek-R1", "Qwen/Qwen2.5-72B-Instruct"
_CAPTIONER = "Qwen/Qwen2.5-VL-72B-Instruct"
_MODELS = (_REASONER, _TEXT_MODEL, _CAPTIONER, "Qwen/Qwen2.5-VL-7B-Instruct", "NAME")


@contextmanager
def addresses(rows: Path) -> Iterator[Mapping[str, str]]:
    """Those that stand for the ones on pages, while they are served.

    Args:
        rows: GRPO rows to which the reasoner knows the truth; it hesitates at every other.
    """
    known = {row["question"]: (row["gt"], number % 2) for number, row in enumerate(json.loads(rows.read_text()))}

    def chat(seen: Seen) -> Reply:
        if seen.path == "/v1/models":
            return Reply({"object": "list", "data": [{"id": name, "object": "model"} for name in _MODELS]})
        return Reply(completion(_answer(seen.json["model"], text_of(seen), known)))

    scoring = ScoringServer(("127.0.0.1", 0), scorer=Longer())
    with scripted(chat) as server, running(scoring), tiny_vllm(min_pixels=3136, max_pixels=262144) as (rollouts, _):
        yield {**dict.fromkeys(CHAT, f"{server.url}/v1"), SCORER: scoring.url, ROLLOUTS: rollouts}


def _answer(model: str, text: str, known: Mapping[str, tuple[object, int]]) -> str:
    if model == _REASONER:
        truth, hesitates = next((told for question, told in known.items() if question in text), ("", 0))
        return f"<think>I look. {'Wait, once more. ' * hesitates}It is clear.</think>{truth}"
    if model == _TEXT_MODEL:
        return default_answer("rewrite-model" if "<reasoning>" in text else "verify-model", text)
    return default_answer("caption-model", text) if model == _CAPTIONER else '{"score": 7}'
