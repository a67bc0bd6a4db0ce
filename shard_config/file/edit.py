"""Changes a collection's search options in a map's text and leaves the rest as its author wrote it.

Comments and line ends stay as they are. The text is edited by the places that YAML's parser found, option
by option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

import yaml

__all__ = ["Option", "raise_version", "set_search_options"]

Option = int | float | date | Mapping[str, int | float | date]

_LINE_END = re.compile("\r\n|\n|\r")


def set_search_options(text: str, collection: str, options: Mapping[str, Option]) -> str:
    """`text` with each `collections.<collection>.search.<option>` set; a new option goes to the front.

    Raises:
        ValueError: the text has no such collection.
    """
    for option in reversed(list(options)):
        text = _set(text, collection, option, _written(options[option]))
    return text


def raise_version(text: str) -> str:
    """`text` with the map's version one higher."""
    version = _child(yaml.compose(text, Loader=yaml.SafeLoader), "version")
    if not isinstance(version, yaml.ScalarNode):
        return text
    return _replaced(text, version.start_mark.index, version.end_mark.index, str(int(version.value) + 1))


def _set(text: str, collection: str, option: str, value: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    body = _child(_child(root, "collections"), collection)
    if not isinstance(body, yaml.MappingNode):
        raise ValueError(f"no collection {collection} in the map")
    search = _child(body, "search")
    present = _child(search, option)
    if present is not None:
        return _replaced(text, present.start_mark.index, _end(present), value)
    if isinstance(search, yaml.MappingNode) and (search.value or search.flow_style):
        return _opened(text, search, f"{option}: {value}")
    if search is not None:  # `search:` with nothing in it
        entry = f" {{{option}: {value}}}"
        return _replaced(text, search.start_mark.index, search.end_mark.index, entry)
    return _opened(text, body, f"search: {{{option}: {value}}}")


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                found: yaml.Node = value
                return found
    return None


def _end(node: yaml.Node) -> int:
    """Where the node's last character stands; the parser says of a block where the next token begins."""
    while isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        node = node.value[-1][1]
    end: int = node.end_mark.index
    return end


def _replaced(text: str, start: int, end: int, value: str) -> str:
    return text[:start] + value + text[end:]


def _opened(text: str, mapping: yaml.MappingNode, entry: str) -> str:
    """`text` with a first entry of `mapping`."""
    if not mapping.value:
        end: int = mapping.end_mark.index - 1  # a flow mapping's brace
        return _replaced(text, end, end, entry)
    # The mapping itself begins before its anchor, if it has one.
    first = mapping.value[0][0].start_mark
    line_end = _LINE_END.search(text)
    own_line = (line_end.group() if line_end else "\n") + " " * first.column
    return _replaced(text, first.index, first.index, entry + (", " if mapping.flow_style else own_line))


def _written(value: Option) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(part)}' for name, part in value.items())}}}"
    return str(value)
