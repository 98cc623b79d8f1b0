"""A chat template that says by itself what the policy was told in training."""

from __future__ import annotations

import json


def with_system_prompt(template: str, prompt: str) -> str:
    """Makes a chat without a system turn begin with `prompt`.

    Args:
        template: A Jinja chat template in the form of transformers, with `messages` a list.
        prompt: The system prompt of training; with an empty one the template stays as it is.

    Returns:
        A template that renders chats with a system turn of their own as before.
    """
    if not prompt:
        return template
    # Jinja reads the escapes of JSON's strings; characters beyond the basic plane are written as they are, since it
    # would not join the halves of a pair.
    turn = f"[{{'role': 'system', 'content': {json.dumps(prompt, ensure_ascii=False)}}}]"
    missing = "not messages or messages[0]['role'] != 'system'"
    beginning = f"{{%- if {missing} %}}{{%- set messages = {turn} + messages %}}{{%- endif %}}"
    return template if template.startswith(beginning) else beginning + template
