"""What all judges behind an OpenAI-compatible endpoint share: reading a completion, and trying an endpoint out."""

from __future__ import annotations

from typing import Any

from lit_vlaa.rewards.scorers.client import Body, JsonClient
from lit_vlaa.rewards.scorers.wire import RequestError

PATH = "/chat/completions"

OWN_FIELDS = frozenset({"messages", "model", "n", "stream"})
"""Fields of a request that users cannot set."""

_SHOWN_MODELS = 10


def completion(reply: dict[str, Any]) -> tuple[str | None, str | None]:
    """The text of a server's reply, and why it ended there.

    Returns:
        None as text if the reply holds none, or is not in the form of a chat completion.
    """
    try:
        (choice,) = reply["choices"]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, None
    return text if isinstance(text, str) else None, finish


def try_out(client: JsonClient, *, model: str, body: Body, hint: str = "") -> dict[str, Any]:
    """Finds out whether an endpoint answers, by its list of models and by one request.

    Args:
        client: Its option and prefix name the flags in messages.
        model: Name at the server.
        body: Of the request.
        hint: Added to the message when the request is refused for no known reason.

    Returns:
        The reply.

    Raises:
        ValueError: If there is none; the message names the option and the remedy.
    """
    served = _served(client)
    try:
        return client.ask("POST", PATH, body)
    except RequestError as error:
        if served is not None and model not in served:
            names = ", ".join(map(client.shown, served[:_SHOWN_MODELS])) or "none"
            raise ValueError(
                f"{client.prefix}.model {model} is not served at {client.url}; served: {names} ({error})"
            ) from error
        raise ValueError(trouble(client, error, hint)) from error


def _served(client: JsonClient) -> list[str] | None:
    """The models that the server lists, None if it has no list."""
    try:
        reply = client.ask("GET", "/models")
    except RequestError as error:
        if error.status in {None, 401, 403}:
            raise ValueError(trouble(client, error)) from error
        return None
    found = reply.get("data")
    if not isinstance(found, list):
        return None
    return [model["id"] for model in found if isinstance(model, dict) and isinstance(model.get("id"), str)]


def trouble(client: JsonClient, error: RequestError, hint: str = "") -> str:
    """What a failed trial means for the user."""
    where = f"{client.option} {client.url}: {error}"
    if error.status in {401, 403}:
        key = client.api_key_env
        return f"{where}; " + (
            f"check the key in {key}" if key else "name the environment variable with the key by api_key_env"
        )
    if error.late:
        return f"{where}; a server is there: see its log, or give it more time by {client.prefix}.timeout_s"
    if error.status is None:
        return f"{where}; is the server running, and is this its address?"
    if error.status == 404:
        return f"{where}; does it serve {client.prefix}.model? And the address usually ends in /v1"
    if error.status < 300 and error.retry:
        return f"{where}; is this the address of its API? It usually ends in /v1"
    return f"{where}{'' if error.retry else hint}"
