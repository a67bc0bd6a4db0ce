"""What writes did, added up over shards and batches, and the status that says so.

A write has as many outcomes as documents. The status is 200 as soon as anything was stored, because
the body then says the rest; when nothing was, the status says why, so that a client that looks at
nothing else still does the right thing: repair (422), give up (403, 409, 500) or try again (503).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from router.documents.types import DeleteOutcome, DocumentFailure, PatchOutcome, ShardWrite, UpsertOutcome
from router.http.document_answers import DeleteAnswer, PatchAnswer, ShardOutcome, UpsertAnswer, UpsertProblem
from router.http.embedding import EmbeddedDocuments
from router.http.message import Reply, Written
from router.http.problems import MOST_PROBLEMS, error_reply, problem_body
from router.query.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    MisconfiguredError,
    Problem,
    RouterError,
    UnavailableError,
)
from router.query.redaction import ShardFault, redacted

__all__ = ["Tally", "delete_reply", "patch_reply"]


class Tally:
    """The sum of one upsert request's outcomes; `failures` holds the first `listed` of them."""

    def __init__(self, collection: str, listed: int, *, inside: bool = True) -> None:
        """`inside`: the caller may see the inside of the cluster."""
        self._inside = inside
        self._faults: list[ShardFault] = []
        self._collection = collection
        self._listed = listed
        self.stored = 0
        self._failed: Counter[str] = Counter()
        self._shards: dict[str, ShardOutcome] = {}
        self._failures: list[DocumentFailure] = []
        self._embedded = 0
        self._unembedded: Counter[str] = Counter()
        self._retry_after = 1.0

    @property
    def unknown(self) -> int:
        """Of how many documents nobody can tell whether they were stored."""
        return self._failed["unknown"]

    def add(self, outcome: UpsertOutcome) -> None:
        self.stored += outcome.stored
        _add_shards(self._shards, outcome.shards, inside=self._inside)
        if len(self._faults) < MOST_PROBLEMS:
            self._faults += _faults(outcome.shards)
        for failure in outcome.failures:
            if not self._inside and failure.reason != "invalid":
                told = redacted(failure.reason, failure.message)
                failure = msgspec.structs.replace(failure, message=told)
            self.fail(failure)

    def add_embedded(self, made: EmbeddedDocuments) -> None:
        """What became of the texts of some documents; those that have vectors are stored afterwards."""
        self._embedded += made.count
        for failure in made.failures:
            self._unembedded[failure.reason] += 1
            self.fail(failure)
        self._retry_after = max(self._retry_after, made.retry_after)

    def fail(self, failure: DocumentFailure) -> None:
        """`failure` says what this caller may know."""
        self._failed[failure.reason] += 1
        if len(self._failures) < self._listed:
            self._failures.append(failure)

    def reply(self, request_id: str, stopped: RouterError | None = None) -> Reply:
        """The answer; `stopped` is what ended the request before its end."""
        error = stopped or self._nothing_stored()
        failed = self._failed.total()
        failures = tuple(sorted(self._failures, key=lambda failure: failure.index))
        embedded = self._embedded or UNSET
        answer = UpsertAnswer(self.stored, failed, self._shards, failures, failed - len(failures), embedded)
        if error is None:
            reply = Reply(msgspec.json.encode(answer))
        else:
            problems = [_problem(failure) for failure in failures[:MOST_PROBLEMS]]
            problem = problem_body(error, request_id, problems, inside=self._inside)
            fields = msgspec.structs.asdict(problem) | msgspec.structs.asdict(answer)
            reply = error_reply(error, request_id, UpsertProblem(**fields))
        reply.written = Written(self._collection, stored=self.stored, failed=self._failed)
        reply.faults = (*reply.faults, *self._faults)
        return reply

    def _nothing_stored(self) -> RouterError | None:
        failed = self._failed.total()
        if self.stored or not failed:
            return None
        if unknown := self.unknown:
            detail = f"none of {failed} documents is known to be stored; {unknown} may be"
            return UnavailableError(f"{detail}, and sending them again is safe")
        detail = f"none of {failed} documents was stored"
        if self._failed["conflict"] == failed:
            return ConflictError(f"{detail}: each contradicts what is stored")
        if self._failed["unavailable"]:
            shards, texts = "their shards could not be written", "their texts could not be embedded"
            why = self._of_either("unavailable", shards, texts)
            return UnavailableError(f"{detail}: {why}", retry_after=self._retry_after)
        if self._failed["misconfigured"]:
            shards = "their shards cannot be written until somebody mends them"
            texts = "their texts cannot be embedded until somebody mends the map or the model's service"
            return MisconfiguredError(f"{detail}: {self._of_either('misconfigured', shards, texts)}")
        if self._failed["denied"]:
            return DeniedError(f"{detail}: their shards do not let this router write")
        return InvalidError(f"{detail}: each is invalid or contradicts what is stored")

    def _of_either(self, reason: str, shards: str, texts: str) -> str:
        """What `reason` is about, of the documents that failed for it."""
        unembedded = self._unembedded[reason]
        if unembedded == self._failed[reason]:
            return texts
        return f"{shards}, or {texts}" if unembedded else shards


def delete_reply(collection: str, outcome: DeleteOutcome, request_id: str, *, inside: bool = True) -> Reply:
    """The answer to a delete, which is an error only if shards failed and nothing is known to be deleted."""
    shards: dict[str, ShardOutcome] = {}
    _add_shards(shards, outcome.shards, inside=inside)
    error = _undone(outcome.shards, "delete", "deleted", inside=inside)
    if error is not None and not outcome.deleted:
        reply = error_reply(error, request_id)
    else:
        body = msgspec.json.encode(DeleteAnswer(outcome.deleted, shards))
        reply = Reply(body, written=Written(collection, deleted=outcome.deleted))
    reply.faults = _faults(outcome.shards)
    return reply


def patch_reply(
    collection: str, outcome: PatchOutcome, request_id: str, *, embedded: bool = False, inside: bool = True
) -> Reply:
    """The answer to a patch, which is an error only if shards failed and no document is known to match.

    `embedded`: it changes what vectors are made of.
    """
    shards: dict[str, ShardOutcome] = {}
    _add_shards(shards, outcome.shards, inside=inside)
    error = _undone(outcome.shards, "patch", "patched", inside=inside)
    if error is not None and not outcome.matched:
        reply = error_reply(error, request_id)
    else:
        vectors: Literal["kept"] | UnsetType = "kept" if embedded and outcome.patched else UNSET
        body = msgspec.json.encode(PatchAnswer(outcome.matched, outcome.patched, shards, vectors))
        reply = Reply(body, written=Written(collection, patched=outcome.patched))
    reply.faults = _faults(outcome.shards)
    return reply


def _undone(writes: Sequence[ShardWrite], write: str, done: str, *, inside: bool) -> RouterError | None:
    """The error of a write that has done nothing as far as is known; None if no shard failed."""
    failed = [one for one in writes if not one.ok]
    if not failed:
        return None
    problems = [Problem(f"shards.{one.shard}", _why_not(one, inside=inside)) for one in failed]
    what = f"{len(failed)} of {len(writes)} shards"
    detail = f"{what} could not be written; nothing was {done}"
    if unknown := sum(one.unknown for one in failed):
        detail = f"{what} did not confirm the {write}; on {unknown} of them documents may have been {done}"
    return _kind_of(failed)(detail, problems)


def _kind_of(failed: Sequence[ShardWrite]) -> type[RouterError]:
    """The kind of error that lasts as long as the failures do."""
    reasons = {write.reason for write in failed}
    if reasons == {"conflict"}:
        return ConflictError
    if reasons <= {"conflict", "denied"}:
        return DeniedError
    return MisconfiguredError if reasons <= {"conflict", "denied", "misconfigured"} else UnavailableError


def _faults(writes: Iterable[ShardWrite]) -> list[ShardFault]:
    return [
        ShardFault.of(
            one.shard, "unknown" if one.unknown else "failed", one.reason or "unavailable", one.error
        )
        for one in writes
        if not one.ok
    ]


def _add_shards(shards: dict[str, ShardOutcome], writes: Iterable[ShardWrite], *, inside: bool) -> None:
    for write in writes:
        before = shards.get(write.shard, ShardOutcome(ok=True, rows=0))
        shards[write.shard] = ShardOutcome(
            before.ok and write.ok,
            before.rows + write.rows,
            before.error or _told(write, inside=inside),
            True if write.unknown else before.unknown,
        )


def _problem(failure: DocumentFailure) -> Problem:
    where = "" if failure.shard is None else f" (shard {failure.shard})"
    return Problem(f"documents[{failure.index}]", f"{failure.reason}: {failure.message}{where}")


def _told(write: ShardWrite, *, inside: bool) -> str | None:
    if inside or write.error is None:
        return write.error
    return redacted("unknown" if write.unknown else write.reason or "unavailable", write.error)


def _why_not(write: ShardWrite, *, inside: bool) -> str:
    error = _told(write, inside=inside) or "unknown error"
    return f"unknown: {error}" if write.unknown else error
