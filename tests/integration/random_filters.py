"""Random documents, and random filters that may tell them apart."""

from __future__ import annotations

import json
import random
from typing import Any

from router.query.errors import InvalidError
from router.query.filter import parse
from router.settings import Settings
from tests.integration.filter_semantics import matches
from tests.integration.worlds import World

__all__ = ["ONES", "agree", "named", "places", "stored"]

ONES = [1.0] * 8
NAMES = ["a", "a.b", "", "0", "-1", " 1", '"', 'a"b', "\\", "$in", "ä", "metadata", "x y"]
TEXTS = ["", "a", "B", "b", "Ähre", "ähre", "ÄHRE", "z", "ß", "İ", "i", "ı", "Σ", "σ", "ς", "a%", "a_c", "\\"]
SCALARS: list[Any] = [*TEXTS, 0, 1, 1.0, -1, 2, 0.5, 10**20, True, False]
PATTERNS = ["%", "_", "a%", "%B%", "ähre", "Ä%", "i", "σ", "%\\%", "a\\_c", "\\\\", "", "__"]
FIELDS = ["id", "category", "price", "content"]


def value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth == 0 or kind < 0.5:
        return rng.choice([*SCALARS, None])
    if kind < 0.75:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def document(rng: random.Random, id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "category": rng.choice([*TEXTS, None]),
        "price": rng.choice([0.5, 1.0, 2.0, None]),
        "content": rng.choice([*TEXTS, None]),
        "metadata": rng.choice([None, {rng.choice(NAMES): value(rng, 3) for _ in range(6)}]),
    }


Place = tuple[tuple[str, ...], Any]


def places(found: Any, before: tuple[str, ...] = ()) -> list[Place]:
    """Path and value of all that is in a document's metadata, elements of arrays counted from either end."""
    inner: list[tuple[str, Any]] = list(found.items()) if isinstance(found, dict) else []
    if isinstance(found, list):
        inner = [(str(i), one) for i, one in enumerate(found)]
        inner += [(str(i - len(found)), one) for i, one in enumerate(found)]
    own = [(before, found)] if before else []
    return own + [place for name, one in inner for place in places(one, (*before, name))]


def named(rng: random.Random, path: tuple[str, ...]) -> str:
    def written(step: str) -> str:
        must = not step or "." in step or step.startswith('"')
        return json.dumps(step) if must or rng.random() < 0.3 else step

    return ".".join(["metadata", *map(written, path)])


def condition(rng: random.Random, field: str, found: Any) -> dict[str, Any]:
    """`found` is what some document has there: scalars of it are likely to be asked for."""
    values: list[Any] = SCALARS if field.startswith("metadata") else TEXTS
    likely = [one for one in (found if isinstance(found, list) else [found]) if one in SCALARS]
    if likely and rng.random() < 0.6:
        values = likely
    operators = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$between"]
    if field == "price":
        values = [0.5, 1.0, 2.0, 3.0]
    else:
        operators += ["$like", "$ilike"]
    if field.startswith("metadata"):
        operators += ["$contains", "$containsAny", "$containsAll"] * 2
    op = rng.choice(operators)
    match op:
        case "$in" | "$nin" | "$containsAny" | "$containsAll":
            nothing = [] if op.startswith("$contains") else [None]
            some = rng.choice([1, 2, 3, 20])
            listed = [rng.choice([*values, *nothing]) for _ in range(some)]
            return {op: listed}
        case "$between":
            return {op: [rng.choice(values), rng.choice(values)]}
        case "$exists":
            return {op: rng.random() < 0.5}
        case "$like" | "$ilike":
            return {op: rng.choice(PATTERNS)}
        case "$contains" if rng.random() < 0.3:
            return {op: {rng.choice(NAMES): value(rng, 1)}}
        case "$eq" | "$ne":
            return {op: rng.choice([*values, None])}
    return {op: rng.choice(values)}


def filter_(rng: random.Random, known: list[Place], depth: int) -> dict[str, Any]:
    if depth and rng.random() < 0.4:
        combinator = rng.choice(["$and", "$or", "$not"])
        parts = [filter_(rng, known, depth - 1) for _ in range(rng.randrange(1, 4))]
        return {"$not": parts[0]} if combinator == "$not" else {combinator: parts}
    path, found = rng.choice(known)
    field, found = (rng.choice(FIELDS), None) if rng.random() < 0.3 else (named(rng, path), found)
    return {field: condition(rng, field, found)}


def taken(w: World, raw: dict[str, Any]) -> bool:
    try:
        parse(w.collection, raw, Settings())
    except InvalidError:
        return False
    return True


async def stored(w: World, rng: random.Random, count: int) -> list[dict[str, Any]]:
    documents = [document(rng, f"{rng.choice(TEXTS)}{n}") for n in range(count)]
    await w.put(*(w.document(d["id"], ONES, **{k: v for k, v in d.items() if k != "id"}) for d in documents))
    return documents


async def agree(w: World, rng: random.Random, documents: list[dict[str, Any]], filters: int) -> int:
    """Search by so many filters, and by the negation of some; how many of them told documents apart."""
    every = {d["id"] for d in documents}
    # As often as they occur: a path that few documents have tells little.
    known = [place for d in documents for place in places(d["metadata"])]
    tried = apart = 0
    while tried < filters:
        raw = filter_(rng, known, 2)
        if not taken(w, raw):
            # It is refused for what a condition of it can match.
            continue
        tried += 1
        right = {d["id"] for d in documents if matches(raw, d)}
        apart += 0 < len(right) < len(every)
        found = await w.ids(ONES, len(every), filter=raw, exact=True)
        assert set(found) == right, (raw, set(found) ^ right)
        if tried % 4 == 0:
            rest = await w.ids(ONES, len(every), filter={"$not": raw}, exact=True)
            assert set(rest) == every - right, raw
    return apart
