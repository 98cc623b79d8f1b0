"""Settings as transformers 4 reads them, and vLLM and VLMEvalKit with it, beside those of transformers 5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def for_older_versions(folder: Path) -> None:
    """Completes what transformers 5 has written, which reads the result as before.

    Version 4 passes `rope_parameters` over, ties embeddings by the text model's own setting, knows no
    `TokenizersBackend` and takes a list of `extra_special_tokens` for a mapping.

    Args:
        folder: With `config.json` and `tokenizer_config.json`; both are written anew.
    """
    _rewrite(folder / "config.json", _model)
    _rewrite(folder / "tokenizer_config.json", _tokenizer)


def _model(settings: dict[str, Any]) -> None:
    text = settings["text_config"]
    text["tie_word_embeddings"] = settings.get("tie_word_embeddings", False)
    rotary = dict(text["rope_parameters"])
    text["rope_theta"] = rotary.pop("rope_theta")
    kind = rotary.pop("rope_type", "default")
    text["rope_scaling"] = {"type": "mrope" if kind == "default" else kind, **rotary}


def _tokenizer(settings: dict[str, Any]) -> None:
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # which version 5 takes for the same
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")


def _rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    settings = json.loads(file.read_text(encoding="utf-8"))
    change(settings)
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
