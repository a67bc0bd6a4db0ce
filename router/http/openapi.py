"""OpenAPI 3.1 from the table of routes and the types of bodies; nothing in it is written twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from router.decode import bodies
from router.http import answers, document_answers
from router.http.descriptions import FIELDS, TYPES
from router.http.examples import ANSWERS, PATH, REQUESTS
from router.http.problems import ProblemBody
from router.http.routes import Operation

__all__ = ["document"]

_REF = "#/components/schemas/{name}"
# Types that only the extra schemas of raw JSON fields refer to: msgspec does not find them by itself.
_RAW_MEMBERS = (
    bodies.SearchBody,
    bodies.DocumentShape,
    document_answers.Fields,
    answers.Hit,
    answers.SearchAnswer,
    answers.BatchError,
)
_PATH_PARAMETERS = {
    "collection": "A collection of the shard map.",
    "id": "The document's id, percent-encoded.",
}
_TAGS = {
    "search": "Nearest documents, by vector or by text.",
    "documents": "Storing, reading, deleting and counting documents.",
    "collections": "What there is to search, and where it lies.",
    "cluster": "The servers behind the router, for operators.",
    "health": "For load balancers and monitoring.",
    "about": "Metrics, and this description.",
}
# What a status means here; the phrase of HTTP where that says enough.
_STATUSES = {
    400: "The request is no HTTP, no JSON or no UTF-8, or nested beyond measure.",
    401: "There is no key, or one that is not known.",
    403: "The key lacks the scope.",
    404: "There is no such path, collection, document, or place for a key.",
    406: "Accept-Encoding takes neither gzip nor an answer as it is.",
    408: "The body did not come in time.",
    409: "It contradicts what is stored.",
    410: "The ranking of the cursor is not kept any more.",
    413: "The body exceeds its limit.",
    414: "The target is too long.",
    415: "The content type is not read here, or the body is compressed.",
    422: "It is well-formed but wrong, or its answer would be too large.",
    429: "Too much is being asked at once.",
    431: "The headers are too long.",
    500: "A fault of the router; its log has the rest under the request id.",
    501: "The body has a transfer coding other than chunked.",
    503: "Shards that are needed cannot answer.",
    504: "The time ran out first.",
    505: "HTTP/1.1 is spoken here.",
}
_ID_HEADER = {
    "X-Request-ID": {
        "description": "The caller's, or a new one.",
        "schema": {"type": "string", "maxLength": 128},
    }
}
_RETRY_HEADER = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
# Not as a second type of the body: client generators that know no such type warn of it, or make two
# parameters of one body and a client that cannot be imported.
_NDJSON = (
    "The body may also be a stream of any length, one document per line, as `application/x-ndjson`;"
    " it is stored in batches while it comes."
)


def document(operations: Iterable[Operation], version: str, *, keys: bool) -> dict[str, Any]:
    """The description of `operations`; `keys` says whether they are guarded."""
    operations = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.template, {})[operation.method.lower()] = _operation(operation, keys=keys)
    components: dict[str, Any] = {"schemas": _schemas(operations)}
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the keys file."},
            "header": {
                "type": "apiKey",
                "in": "header",
                "name": "X-API-Key",
                "description": "The same in a header of its own.",
            },
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pgscatter",
            "version": version,
            "description": "Vector search over many PostgreSQL + pgvector nodes.",
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": components,
    }


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    types: dict[str, type[msgspec.Struct]] = {cls.__name__: cls for cls in (ProblemBody, *_RAW_MEMBERS)}
    for operation in operations:
        for cls in (operation.body, *operation.answers.values()):
            if cls is not None and not isinstance(cls, str):
                types[cls.__name__] = cls
    _, components = msgspec.json.schema_components(types.values(), schema_hook=_any, ref_template=_REF)
    for name, schema in components.items():
        _describe(name, schema)
    return dict(sorted(components.items()))


def _describe(name: str, schema: dict[str, Any]) -> None:
    """Give a type and its fields their descriptions, where their annotations have none."""
    schema["description"] = " ".join(schema.get("description", TYPES.get(name, "")).split())
    fields = FIELDS.get(name, {})
    for field, what in schema.get("properties", {}).items():
        for member in what.get("anyOf", ()):
            # msgspec leaves the annotation of an optional field with its type; readers look beside `anyOf`.
            for key in ("description", "examples"):
                if key in member and key not in what:
                    what[key] = member.pop(key)
        if field in fields:
            what["description"] = fields[field]


def _any(type_: type) -> dict[str, Any]:
    if type_ is object:
        return {"description": "Of the type that the collection says."}
    raise NotImplementedError


def _operation(operation: Operation, *, keys: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": _responses(operation, keys=keys),
    }
    if operation.body is not None:
        examples = {
            name: {"summary": summary, "value": value}
            for name, (summary, value) in REQUESTS.get(operation.id, {}).items()
        }
        content = {"application/json": {"schema": _ref(operation.body), "examples": examples}}
        described["requestBody"] = {"required": True, "content": content}
        if operation.stream:
            described["description"] = _NDJSON
    if keys:
        guarded = operation.scope != "open"
        described["security"] = [{"bearer": []}, {"header": []}] if guarded else []
    if operation.scope != "open":
        described["x-scope"] = operation.scope
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", operation.template)
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string"},
            "example": PATH[name],
        }
        for name in names
    ]
    in_query = [
        {
            "name": parameter.name,
            "in": "query",
            "required": parameter.required,
            "description": parameter.description,
            "schema": {"type": "string"},
            "example": parameter.example,
        }
        for parameter in operation.query
    ]
    return in_path + in_query


def _responses(operation: Operation, *, keys: bool) -> dict[str, Any]:
    responses = {}
    for status, answer in operation.answers.items():
        if isinstance(answer, str):
            content: dict[str, Any] = {answer: {"schema": {} if "json" in answer else {"type": "string"}}}
        elif issubclass(answer, ProblemBody):
            content = _problem(answer)
        else:
            content = {"application/json": {"schema": _ref(answer)}}
            if status == 200 and operation.id in ANSWERS:
                content["application/json"]["example"] = ANSWERS[operation.id]
        responses[status] = _response(status, content, operation.headers)
    for status in operation.problem_statuses(keys=keys) - set(operation.answers):
        responses[status] = _response(status, _problem(ProblemBody))
    return {str(status): responses[status] for status in sorted(responses)}


def _response(status: int, content: dict[str, Any], own: Mapping[str, str] = {}) -> dict[str, Any]:
    headers: dict[str, Any] = _ID_HEADER | (_RETRY_HEADER if status in (429, 503) else {})
    for name, description in own.items():
        headers[name] = {"description": description, "schema": {"type": "string"}}
    description = _STATUSES.get(status, HTTPStatus(status).phrase)
    return {"description": description, "headers": headers, "content": content}


def _problem(type_: type[ProblemBody]) -> dict[str, Any]:
    schema: dict[str, Any] = _ref(ProblemBody)
    if type_ is not ProblemBody:
        # Until it has begun to write, an operation fails like any other.
        schema = {"anyOf": [_ref(type_), schema]}
    return {"application/problem+json": {"schema": schema}}


def _ref(type_: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=type_.__name__)}
