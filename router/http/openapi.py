"""OpenAPI 3.1 from the table of routes and the types of bodies; nothing in it is written twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from router.http import answers, bodies
from router.http.problems import ProblemBody
from router.http.routes import Operation

__all__ = ["document"]

_REF = "#/components/schemas/{name}"
# Named in the extra schema of fields that are kept as raw JSON, so that msgspec does not meet them.
_RAW_MEMBERS = (
    bodies.SearchBody,
    bodies.DocumentShape,
    answers.Hit,
    answers.SearchAnswer,
    answers.BatchError,
)
_PATH_PARAMETERS = {
    "collection": "A collection of the shard map.",
    "id": "The document's id, percent-encoded.",
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
_NDJSON_BODY = {
    "application/x-ndjson": {"schema": {"type": "string", "description": "One document per line."}}
}


def document(operations: Iterable[Operation], version: str, *, keys: bool) -> dict[str, Any]:
    """The description of `operations`; `keys` says whether they are guarded."""
    operations = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.template, {})[operation.method.lower()] = _operation(operation, keys=keys)
    components: dict[str, Any] = {"schemas": _schemas(operations)}
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pgscatter",
            "version": version,
            "description": "Vector search over many PostgreSQL + pgvector nodes.",
        },
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
    return dict(sorted(components.items()))


def _any(type_: type) -> dict[str, Any]:
    if type_ is object:
        return {"description": "Of the type that the collection says."}
    raise NotImplementedError


def _operation(operation: Operation, *, keys: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": _responses(operation, keys=keys),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {
            "required": True,
            "content": content | (_NDJSON_BODY if operation.stream else {}),
        }
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
        responses[status] = _response(status, content, operation.headers)
    for status in operation.problem_statuses(keys=keys) - set(operation.answers):
        responses[status] = _response(status, _problem(ProblemBody))
    return {str(status): responses[status] for status in sorted(responses)}


def _response(status: int, content: dict[str, Any], own: Mapping[str, str] = {}) -> dict[str, Any]:
    headers: dict[str, Any] = _ID_HEADER | (_RETRY_HEADER if status in (429, 503) else {})
    for name, description in own.items():
        headers[name] = {"description": description, "schema": {"type": "string"}}
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def _problem(type_: type[ProblemBody]) -> dict[str, Any]:
    schema: dict[str, Any] = _ref(ProblemBody)
    if type_ is not ProblemBody:
        # Until it has begun to write, an operation fails like any other.
        schema = {"anyOf": [_ref(type_), schema]}
    return {"application/problem+json": {"schema": schema}}


def _ref(type_: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=type_.__name__)}
