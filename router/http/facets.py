"""Counting documents by the values of fields."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import UNSET

from router.decode.bodies import FacetsBody
from router.decode.body import Decoder
from router.decode.facets import Counting, counting
from router.http.answers import coverage_view
from router.http.content import read_json
from router.http.document_answers import FacetsView, FacetValueView, FacetView
from router.http.message import Reply, Request
from router.query.answer import faults_of
from router.query.facets import Facet
from router.settings import Settings

__all__ = ["FacetCounts"]


class FacetCounts:
    """The handler of facets."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoder = Decoder(FacetsBody, exact=True)
        self._encoder = msgspec.json.Encoder(decimal_format="number")

    async def count(self, request: Request) -> Reply:
        now = asyncio.get_running_loop().time()
        collection = request.collection
        body = self._decoder.decode(await read_json(request, self._settings))
        wanted: Counting = counting(body, collection, self._settings)
        answer = await request.backend.facets(
            collection, wanted.fields, wanted.filter, wanted.limit, now + wanted.timeout
        )
        coverage = coverage_view(answer.coverage, inside=request.inside)
        reply = Reply(self._encoder.encode(FacetsView([_view(one) for one in answer.facets], coverage)))
        reply.faults = faults_of(answer.coverage)
        return reply


def _view(facet: Facet) -> FacetView:
    return FacetView(
        facet.field,
        [FacetValueView(one.value, one.count) for one in facet.values],
        facet.missing,
        facet.undercount == 0,
        facet.more,
        facet.undercount or UNSET,
        facet.too_long or UNSET,
    )
