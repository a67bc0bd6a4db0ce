"""The `models` and `rerankers` of a map: HTTP services, whose keys no view and no message shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from shard_config import limits
from shard_config.file import fields
from shard_config.file.fields import Field, shown, text_of, values
from shard_config.file.nodes import check_name
from shard_config.file.reader import Cursor
from shard_config.file.view import escaped
from shard_config.model import EmbeddingService, RerankingApi, RerankingService

S = TypeVar("S", bound=msgspec.Struct)

_URL = "an http or https URL without user, query and fragment, such as http://127.0.0.1:8200/v1"
_KEY = "a key: printable characters without spaces, 4096 at most, such as ${API_KEY}"


def _secret(pattern: str, what: str) -> Callable[[Cursor], str | None]:
    """Reads what may hold a key, or hold one by mistake: a finding does not repeat it."""

    def read(cursor: Cursor) -> str | None:
        if cursor.present and not cursor.is_text:
            cursor.fail(f"expected {what}")
            return None
        text = cursor.string()
        if text is not None and not re.fullmatch(pattern, text):
            cursor.fail(f"expected {what}")
        return text

    return read


def _text(pattern: str, what: str, default: str | None, help: str) -> Field:
    def read(cursor: Cursor) -> str | None:
        text = cursor.matching(pattern, what)
        return default if text is None else text

    return Field(read, text_of(pattern), default, help, show=escaped)


_COMMON = {
    "url": Field(_secret(limits.SERVICE_URL, _URL), text_of(limits.SERVICE_URL), show=escaped).required(
        "http://127.0.0.1:8200/v1"
    ),
    "model": _text(
        limits.MODEL_NAME,
        "a model's name, 256 characters at most",
        None,
        "What the service calls it; the name that it has here, if left out.",
    ),
    "api_key": Field(
        _secret(limits.API_KEY, _KEY),
        text_of(limits.API_KEY),
        help="Sent as `Authorization: Bearer`; write ${NAME} for a variable of the environment.",
        show=lambda key: "***",
    ),
    "timeout": fields.duration(limits.TIMEOUT, 1.0),
}
EMBEDDING = {
    **_COMMON,
    # 0 stands for one that could not be read, so that nothing is said of its fit.
    "dimensions": fields.integer(limits.DIMENSIONS)
    ._replace(read=lambda cursor: cursor.integer(limits.DIMENSIONS, 0))
    .required("384"),
    "api_version": _text(
        limits.API_VERSION,
        "a version such as 2024-02-01",
        None,
        "Azure's; with it the key goes in the header `api-key`.",
    ),
    "batch": fields.integer(limits.EMBEDDING_BATCH, 64),
    "query_prefix": _text(
        limits.PREFIX, "a text of 4096 characters at most", "", "Before a text searched for."
    ),
    "document_prefix": _text(limits.PREFIX, "a text of 4096 characters at most", "", "Before a text stored."),
    "send_dimensions": fields.boolean(False, "Ask the service for vectors of `dimensions`."),
}
RERANKING = {
    **_COMMON,
    "api": fields.choice(RerankingApi, RerankingApi.COHERE),
}


def read_models(cursor: Cursor) -> dict[str, EmbeddingService]:
    """All embedding services that the file names, those with findings included."""
    return _read(cursor, EMBEDDING, EmbeddingService)


def read_rerankers(cursor: Cursor) -> dict[str, RerankingService]:
    """As `read_models`."""
    return _read(cursor, RERANKING, RerankingService)


def show_models(services: Mapping[str, EmbeddingService]) -> dict[str, Any]:
    """As the file has them, with `***` in place of keys."""
    return {name: shown(service, EMBEDDING) for name, service in services.items()}


def show_rerankers(services: Mapping[str, RerankingService]) -> dict[str, Any]:
    """As `show_models`."""
    return {name: shown(service, RERANKING) for name, service in services.items()}


def _read(cursor: Cursor, table: Mapping[str, Field], made: Callable[..., S]) -> dict[str, S]:
    entries = cursor.entries()
    if len(entries) > limits.SERVICES:
        cursor.fail(f"{len(entries)} services exceed {limits.SERVICES}")
    services = {}
    for name, entry in entries:
        check_name(name, entry)
        found = values(entry, table)
        services[name] = made(name=name, **{**found, "model": found["model"] or name})
    return services
