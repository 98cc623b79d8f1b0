"""Small builds by `lit-vlaa data build`: sources, configuration, and a server that answers every step by a script."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from helpers.scripted_http import Reply, ScriptedServer, Seen, scripted

PROMPTS = Path(__file__).resolve().parents[2] / "configs" / "data" / "prompts"
ASKING = ("caption", "distil", "rewrite", "verify")

Answer = Callable[[str, str], Any]
"""(all text of a request, the default answer) -> text, a whole message, or a Reply."""


def make_source(root: Path, rows: Sequence[dict[str, Any]], *, images: int | None = None) -> Path:
    """A JSON Lines source of questions beside a folder of pictures, each of another colour.

    Rows without an image get `set/<row>.png`, of which there are `images` at most.
    """
    count = len(rows) if images is None else images
    for index in range(count):
        file = root / "images" / "set" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (56, 28 + index % 7), (index % 256, 40 * index % 256, 90)).save(file)
    path = root / "rows.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for index, row in enumerate(rows):
            stream.write(json.dumps({"id": f"r{index}", "image": f"set/{index % count}.png", **row}) + "\n")
    return path


def questions(count: int) -> list[dict[str, Any]]:
    """Rows whose answer is their number."""
    return [{"question": f"How many dots are in picture {index}?", "answer": index} for index in range(count)]


def make_config(root: Path, url: str, **changes: Any) -> Path:
    """A configuration for `make_source`; a change such as `rewrite__tries=3` or `distil__endpoint__max_tokens=9`."""
    config: dict[str, Any] = {
        "name": "built-in-a-test",
        "image_root": "images",
        "sources": [{"adapter": "jsonl", "path": "rows.jsonl", "name": "dots"}],
    }
    for step in ASKING:
        endpoint = {"base_url": url, "model": f"{step}-model", "concurrency": 4, "retries": 1, "backoff_s": 0.01}
        config[step] = {"prompt": str(PROMPTS / f"{step}.txt"), "endpoint": endpoint}
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    file = root / "build.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def text_of(seen: Seen) -> str:
    """All text of a request."""
    parts: list[str] = []
    for message in seen.json["messages"]:
        content = message["content"]
        texts = [part["text"] for part in content if part["type"] == "text"] if isinstance(content, list) else [content]
        parts += texts
    return "\n".join(parts)


def completion(message: dict[str, Any] | str, *, finish: str = "stop", usage: bool = True) -> dict[str, Any]:
    """A chat completion of 7 tokens for 11."""
    body = {"role": "assistant", "content": message} if isinstance(message, str) else message
    reply: dict[str, Any] = {"choices": [{"index": 0, "message": body, "finish_reason": finish}]}
    return reply | ({"usage": {"prompt_tokens": 11, "completion_tokens": 7}} if usage else {})


def default_answer(model: str, text: str) -> str:
    """What the script answers: traces of rows whose number is odd hold a cue, and all end with the right number."""
    step = model.removesuffix("-model")
    if step == "caption":
        return "A plain picture with dots."
    if step == "distil":
        match = re.search(r"Question: .*?(\d+)\?", text)
        number = int(match[1]) if match else 0
        cue = "Wait, I count anew." if number % 2 else "I count the dots."
        return f"<think>The caption says dots. {cue} There are {number}.</think>{number}"
    if step == "rewrite":
        *_, reasoning = re.findall(r"<reasoning>\n(.*?)\n</reasoning>", text, re.DOTALL)
        *_, final = re.findall(r"<final>\n(.*?)\n</final>", text, re.DOTALL)
        return f"<reasoning>{reasoning.replace('caption says', 'image shows')}</reasoning><final>{final}</final>"
    return "Yes"


class Endpoints:
    """The script of all steps, told apart by model; counts what it answered."""

    def __init__(self, answers: dict[str, Answer] | None = None) -> None:
        self.answers = answers or {}
        self.asked: Counter[str] = Counter()
        """Requests by their body without what differs between servers."""
        self.by_step: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Reply:
        model = seen.json["model"]
        step = model.removesuffix("-model")
        with self._lock:
            self.asked[seen.body.decode()] += 1
            self.by_step[step] += 1
        text = text_of(seen)
        answer: Any = default_answer(model, text)
        if step in self.answers:
            answer = self.answers[step](text, answer)
        return answer if isinstance(answer, Reply) else Reply(completion(answer))


@contextmanager
def endpoints(answers: dict[str, Answer] | None = None) -> Iterator[tuple[ScriptedServer, Endpoints]]:
    """A server with that script."""
    script = Endpoints(answers)
    with scripted(script) as server:
        yield server, script


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def split(output: Path, name: str) -> list[dict[str, Any]]:
    """The rows of the `SFT` or `GRPO` file."""
    (path,) = output.glob(f"VLAA-Thinking-{name}-*.json")
    return read_lines(path)
