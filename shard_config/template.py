"""What is embedded of a document, as a map's `template` says it: text with `{fields}` in it.

    {title}            a column that the collection declares
    {content}          the content
    {metadata.author}  what is at that path of the metadata, written as in filters
    {{ and }}          a brace

Pure; a collection whose map was read has only templates that `parts` takes.
"""

from __future__ import annotations

import re

import msgspec

from shard_config import limits, metadata_path
from shard_config.model import Collection

__all__ = ["CONTENT", "TemplateField", "parts", "parts_of"]

_PIECE = re.compile(r"(?P<text>(?:[^{}]|\{\{|\}\})+)|\{(?P<field>[^{}]*)\}")


class TemplateField(msgspec.Struct, frozen=True):
    """A field of a document: `content`, `metadata` with the steps of a `path` in it, or a column's name."""

    name: str
    path: tuple[str, ...] = ()


CONTENT = TemplateField("content")


def parts(template: str) -> tuple[str | TemplateField, ...]:
    """The template's texts and fields, in their order.

    Raises:
        ValueError: with a message that says what is wrong.
    """
    if len(template) > limits.TEMPLATE_LENGTH:
        raise ValueError(f"a template of {len(template)} characters exceeds {limits.TEMPLATE_LENGTH}")
    found: list[str | TemplateField] = []
    at = 0
    while at < len(template):
        piece = _PIECE.match(template, at)
        if piece is None:
            raise ValueError("a brace that no other closes; write {{ or }} for a brace")
        at = piece.end()
        field = piece["field"]
        if field is None:
            found.append(piece["text"].replace("{{", "{").replace("}}", "}"))
        else:
            found.append(_field(field))
    fields = sum(isinstance(part, TemplateField) for part in found)
    if not 1 <= fields <= limits.TEMPLATE_FIELDS:
        raise ValueError(
            f"a template names from 1 to {limits.TEMPLATE_FIELDS} fields, such as {{content}}; this, {fields}"
        )
    return tuple(found)


def parts_of(collection: Collection) -> tuple[str | TemplateField, ...]:
    """What a document's text is made of: the template's parts, or else the content, if there is one."""
    if collection.template is not None:
        return parts(collection.template)
    return () if collection.content is None else (CONTENT,)


def _field(text: str) -> TemplateField:
    name, dot, path = text.partition(".")
    if not dot:
        return TemplateField(name)
    if name != "metadata":
        raise ValueError(f"of the fields, only metadata has paths; {{{text[:60]}}} has one")
    return TemplateField(name, metadata_path.steps(path))
