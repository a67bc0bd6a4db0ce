"""Changing fields of documents that are stored."""

from __future__ import annotations

import asyncio

from msgspec import UNSET

from router.decode.bodies import PatchBody, PatchManyBody
from router.decode.body import Decoder
from router.decode.embedded import Texts
from router.decode.patch import patch_of
from router.documents.types import PatchOutcome
from router.http.content import read_json
from router.http.message import Reply, Request
from router.http.outcomes import patch_reply
from router.http.parameters import check_filter, checked_ids, no_document, path_id
from router.query.errors import InvalidError, Problem, invalid
from router.query.filter import Filter
from router.query.patch import Patch
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["Patches"]


class Patches:
    """The handlers of patches, of one document and of many."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoder = Decoder(PatchBody)
        self._many_decoder = Decoder(PatchManyBody, exact=True)

    async def patch_one(self, request: Request) -> Reply:
        collection = request.collection
        id_ = path_id(request, collection)
        body = self._decoder.decode(await read_json(request, self._settings))
        patch = patch_of(body.set, body.unset, collection, self._settings.max_patch_fields)
        outcome = await request.backend.patch(collection, [id_], patch, self._deadline())
        if not outcome.matched and all(write.ok for write in outcome.shards):
            raise no_document(request, collection)
        return self._reply(request, outcome, patch)

    async def patch_many(self, request: Request) -> Reply:
        collection = request.collection
        body = self._many_decoder.decode(await read_json(request, self._settings))
        which, patch = self._checked(body, collection)
        if isinstance(which, list):
            outcome = await request.backend.patch(collection, which, patch, self._deadline())
        else:
            outcome = await request.backend.patch_matching(collection, which, patch, self._deadline())
        return self._reply(request, outcome, patch)

    def _reply(self, request: Request, outcome: PatchOutcome, patch: Patch) -> Reply:
        collection = request.collection
        embedded = Texts(collection).concerned(patch)
        return patch_reply(collection.name, outcome, request.id, embedded=embedded, inside=request.inside)

    def _checked(self, body: PatchManyBody, collection: Collection) -> tuple[list[object] | Filter, Patch]:
        """Which documents to change, and how.

        Raises:
            InvalidError: with every problem found.
        """
        problems: list[Problem] = []
        which: list[object] | Filter = []
        patch = Patch()
        if (body.ids is UNSET) == (body.filter is UNSET):
            problems.append(Problem("", "a patch takes ids or a filter, one of the two"))
        try:
            if body.ids is not UNSET:
                which = checked_ids(body.ids, collection, self._settings.max_documents)
            elif body.filter is not UNSET:
                which = check_filter(body.filter, collection, self._settings)
        except InvalidError as exc:
            problems.extend(exc.problems)
        try:
            patch = patch_of(body.set, body.unset, collection, self._settings.max_patch_fields)
        except InvalidError as exc:
            problems.extend(exc.problems)
        if problems:
            raise invalid(problems)
        return which, patch

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.write_timeout
