"""OpenAPI as one HTML page that needs nothing from anywhere: no script, no font, no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["render"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
details { border: 1px solid #8884; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; background: #8881; padding: .6rem; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-top: 1px solid #8883; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
.scope { float: right; opacity: .7; }
:root { color-scheme: light dark; }
"""


def render(openapi: Mapping[str, Any]) -> str:
    """The page that describes `openapi`."""
    info = openapi["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1><p>{escape(info['description'])}</p>",
            '<p>The same for machines: <a href="/openapi.json">/openapi.json</a>.</p>',
            "<h2>Operations</h2>",
            *_operations(openapi["paths"]),
            "<h2>Bodies</h2>",
            *_schemas(openapi["components"]["schemas"]),
            "</body></html>",
        ]
    )


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            scope = escape(operation.get("x-scope", "open"))
            yield f'<details><summary><span class="method">{method.upper()}</span>'
            yield f'<code>{escape(path)}</code> <span class="scope">{scope}</span><br>'
            yield f"{escape(operation['summary'])}</summary><p>{escape(operation.get('description', ''))}</p>"
            yield from _parameters(operation["parameters"])
            yield from _contents("Body", operation.get("requestBody", {}).get("content", {}))
            yield from _answers(operation["responses"])
            yield "</details>"


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    yield "<h4>Answers</h4><table>"
    for status, response in responses.items():
        types = ", ".join(_content(media, what) for media, what in response["content"].items())
        yield f"<tr><td>{status}</td><td>{escape(response['description'])}</td><td>{types}</td></tr>"
    yield "</table>"


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield "<h4>Parameters</h4><table>"
    for parameter in parameters:
        need = "required" if parameter["required"] else "optional"
        yield f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{parameter['in']}, {need}</td>"
        yield f"<td>{escape(parameter['description'])}</td></tr>"
    yield "</table>"


def _contents(heading: str, contents: Mapping[str, Any]) -> Iterator[str]:
    if contents:
        yield f"<h4>{heading}</h4><p>"
        yield "<br>".join(_content(media, what) for media, what in contents.items())
        yield "</p>"


def _content(media: str, what: Mapping[str, Any]) -> str:
    return f"{escape(media)}: {_type(what['schema'])}"


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> '
        yield f"{escape(schema.get('description', ''))}</summary>"
        if "properties" not in schema:
            yield f"<pre>{escape(json.dumps(schema, indent=1))}</pre></details>"
            continue
        required = schema.get("required", [])
        yield "<table>"
        for field, what in schema["properties"].items():
            need = "required" if field in required else _default(what)
            yield f"<tr><td><code>{escape(field)}</code></td><td>{_type(what)}</td><td>{need}</td>"
            yield f"<td>{escape(what.get('description', ''))}</td></tr>"
        yield "</table></details>"


def _default(schema: Mapping[str, Any]) -> str:
    return (
        f"default <code>{escape(json.dumps(schema['default']))}</code>" if "default" in schema else "optional"
    )


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to the named ones."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array" and "items" in schema:
        kind = f"array of {_type(schema['items'])}"
    bounds = [f"{word} {schema[word]}" for word in ("minimum", "maximum", "maxLength") if word in schema]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind
