"""Changes one number of a map's text and leaves the rest, comments included, as its author wrote it."""

from __future__ import annotations

import re

import yaml

__all__ = ["set_search_option"]

_NOTE = "# pgscatter tune: "


def set_search_option(text: str, collection: str, option: str, value: int, note: str) -> str:
    """`text` with `collections.<collection>.search.<option>` set, and the map's version one higher.

    `note` becomes a comment on the line above; an earlier such comment goes.

    Raises:
        ValueError: the text has no such collection.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    body = _child(_child(root, "collections"), collection)
    if not isinstance(root, yaml.MappingNode) or not isinstance(body, yaml.MappingNode):
        raise ValueError(f"no collection {collection} in the map")
    search = _child(body, "search")
    present = _child(search, option)
    if present is not None:
        start, end = present.start_mark.index, present.end_mark.index
        edits = [(start, end, str(value))]
    elif isinstance(search, yaml.MappingNode) and (search.value or search.flow_style):
        start, inserted = _opening(search, f"{option}: {value}")
        edits = [(start, start, inserted)]
    elif search is not None:  # `search:` with nothing in it
        start = search.start_mark.index
        edits = [(start, search.end_mark.index, f" {{{option}: {value}}}")]
    else:
        start, inserted = _opening(body, f"search: {{{option}: {value}}}")
        edits = [(start, start, inserted)]
    version = _child(root, "version")
    if isinstance(version, yaml.ScalarNode):
        raised = str(int(version.value) + 1)
        edits.append((version.start_mark.index, version.end_mark.index, raised))
    edits += _noted(text, start, note)
    for begin, end, inserted in sorted(edits, reverse=True):
        text = text[:begin] + inserted + text[end:]
    return text


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                found: yaml.Node = value
                return found
    return None


def _opening(mapping: yaml.MappingNode, entry: str) -> tuple[int, str]:
    """Where a first entry of `mapping` goes, and the text that puts it there."""
    start: int = mapping.start_mark.index
    if mapping.flow_style:
        return start + 1, entry + (", " if mapping.value else "")
    return start, f"{entry}\n{' ' * mapping.start_mark.column}"


def _noted(text: str, place: int, note: str) -> list[tuple[int, int, str]]:
    """Edits that put the note above the line of `place`, instead of an earlier one."""
    line = text.rfind("\n", 0, place) + 1
    indent = re.match(r"[ ]*", text[line:])
    above = text.rfind("\n", 0, max(line - 1, 0)) + 1
    begin = above if line and text[above:line].lstrip().startswith(_NOTE) else line
    return [(begin, line, f"{indent[0] if indent else ''}{_NOTE}{note}\n")]
