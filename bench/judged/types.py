"""A collection with queries whose right answers are known."""

from __future__ import annotations

import msgspec

__all__ = ["Judged", "Query"]


class Query(msgspec.Struct, frozen=True):
    """`relevant` are numbers of documents, and never none."""

    text: str
    relevant: frozenset[int]


class Judged(msgspec.Struct, frozen=True):
    """`documents` have their place as id; `about` says of what they and the queries were made."""

    name: str
    about: str
    documents: list[str]
    queries: list[Query]

    def __repr__(self) -> str:
        return f"<Judged {self.name}: {len(self.documents)} documents, {len(self.queries)} queries>"
