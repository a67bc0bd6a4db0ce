"""Every limit that an operator can set: its type, bounds, default and description, once.

Each field is a flag of `pgscatter serve` (`--max-body-bytes`) and an environment variable
(`PGSCATTER_MAX_BODY_BYTES`). Its annotation says which values it takes and, in Markdown, what it means;
`pgscatter serve --help`, the messages about bad values and the tables of `docs/settings.md` are made from it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

__all__ = ["Setting", "Settings", "described", "origins_of"]

_ORIGIN = re.compile(
    r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?|[a-z][a-z0-9+.-]*-extension://[\w-]+"
)
# Far beyond any use, and whole numbers up to it are exact as floating-point numbers too.
_MOST = 1 << 53


def _number(title: str, metavar: str, *, zero: bool, most: float = _MOST) -> Meta:
    extra = {"metavar": metavar}
    if zero:
        return Meta(ge=0, le=most, title=title, extra=extra)
    return Meta(gt=0, le=most, title=title, extra=extra)


Count = Annotated[int, _number("a whole number", "N", zero=False)]
CountOrZero = Annotated[int, _number("a whole number", "N", zero=True)]
Seconds = Annotated[float, _number("a number of seconds", "SECONDS", zero=False)]
# Linux takes none that is longer for an idle connection: it would keep its own, which is two hours.
TcpSeconds = Annotated[float, _number("a number of seconds", "SECONDS", zero=False, most=32767)]
SecondsOrZero = Annotated[float, _number("a number of seconds", "SECONDS", zero=True)]
Share = Annotated[float, _number("a share", "SHARE", zero=True, most=1)]
Rate = Annotated[float, _number("a rate", "RATE", zero=False)]
Name = Annotated[str, Meta(title="a name", extra={"metavar": "NAME"})]
Origins = Annotated[str, Meta(title="origins", extra={"metavar": "ORIGINS"})]


class Settings(msgspec.Struct, frozen=True):
    # edges
    max_body_bytes: Annotated[Count, "largest JSON body; 413 beyond it"] = 8 << 20
    max_stream_bytes: Annotated[
        Count,
        "largest stream of newline-delimited documents; 413 beyond it, with what was stored by then",
    ] = 1 << 30
    max_line_bytes: Annotated[
        Count,
        "longest line of such a stream; a longer one is a failed document",
    ] = 1 << 20
    max_batch: Annotated[Count, "searches in one batch"] = 1000
    max_documents: Annotated[Count, "documents, or ids, in one JSON body"] = 10_000
    max_patch_fields: Annotated[
        Annotated[int, _number("a whole number", "N", zero=False, most=10_000)],
        "fields of one patch; a path into the metadata counts once for each of its steps",
    ] = 256
    max_page: Annotated[
        Count,
        "documents of one page of `GET …/documents`; every shard is asked for as many",
    ] = 1000
    max_facet_values: Annotated[
        Count,
        "values of a field that each shard brings for facets; where it has more, the answer says by how much "
        "its counts may be too low",
    ] = 10_000
    max_filter_depth: Annotated[Count, "levels of nesting in a filter"] = 8
    max_filter_conditions: Annotated[Count, "conditions in a filter"] = 256
    max_filter_values: Annotated[
        Count,
        "values of one list in a filter, such as that of `$in`, or within one object of `$contains`",
    ] = 10_000
    max_offset: Annotated[
        CountOrZero,
        "largest offset of a search; every shard has to produce up to four times offset + k rows, see "
        "[Pages](http.md#pages); 0 allows none",
    ] = 10_000
    max_queries: Annotated[Count, "ranked lists that one search may be made of by `queries`"] = 8
    max_candidates: Annotated[
        Count,
        "how deep each of the ranked lists may go that a search is made of, fused, diversified or grouped; a "
        "grouped search that finds too few groups goes as deep",
    ] = 1000
    max_rerank: Annotated[Count, "texts that one search may have re-ranked by a model"] = 200
    rerank_characters: Annotated[
        Count,
        "of each text that is re-ranked, the characters that the model gets; the rest is cut off",
    ] = 4000
    max_examples: Annotated[Count, "documents that one `like` may name"] = 100
    max_group_searches: Annotated[
        CountOrZero,
        "further searches that one grouped search may make to fill its groups; those that are left then say "
        "that they are not full",
    ] = 64
    max_timeout: Annotated[
        Seconds,
        "longest `timeout_ms` that a search may ask for, time for a whole batch, time for a JSON body to "
        "come, and time for a client to take an answer of several MiB",
    ] = 60.0
    max_concurrent: Annotated[
        Count,
        "requests under `/v1` answered at the same time; 429 beyond it, at once",
    ] = 512
    max_answer_bytes: Annotated[
        Count,
        "largest answer to a search, a batch or a read of documents, before compression; a search beyond "
        "it is refused with 422, of a batch that search alone",
    ] = 64 << 20
    answer_memory_bytes: Annotated[
        Count,
        "what answers of more than about 1 MiB may take together while they are made and sent; further ones "
        "wait within their time, then 429",
    ] = 128 << 20
    cors_origins: Annotated[
        Origins,
        "origins whose pages may call the router from a browser, such as "
        "`https://app.example.com,https://admin.example.com`; `*` for all; none if empty",
    ] = ""
    write_timeout: Annotated[
        Seconds,
        "time for storing a body or a batch of a stream, for a delete, and between two parts of a stream",
    ] = 30.0
    drain_delay: Annotated[
        SecondsOrZero,
        "time after SIGTERM in which the router still takes requests but says that it is not ready, so that "
        "load balancers turn to another one; Ctrl-C and a second signal skip it",
    ] = 5.0
    drain_timeout: Annotated[Seconds, "time for requests under way to finish after that, or after Ctrl-C"] = (
        30.0
    )
    slow_search: Annotated[
        SecondsOrZero,
        "a search that takes as long leaves a line `slow search` in the log, at most one a second, with "
        "where the time went and the [indexes that its filter lacks](recall.md#indexes-for-filters); 0 turns "
        "that off",
    ] = 1.0
    # nodes
    node_connections: Annotated[
        Count,
        "connections to a node for reads, and with it the most statements running there at once",
    ] = 16
    node_statements: Annotated[
        Count,
        "statements at once that a node is always given; between the two the router adapts to the latency "
        "it sees",
    ] = 1
    node_together: Annotated[
        Count,
        "searches of the same shape that leave as one statement when they had to wait, if each wants at "
        "most 256 rows, and four times as many that share an exact read; 1 turns that off",
    ] = 16
    node_queue: Annotated[
        CountOrZero,
        "single searches that may wait for a node; 429 beyond it; 0 lets none wait; those of an admitted "
        "batch wait in any case",
    ] = 512
    node_queue_wait: Annotated[
        Seconds,
        "how long a single search may wait for a node; 429 at once when it would be longer",
    ] = 1.5
    write_connections: Annotated[Count, "connections to a node for writes"] = 4
    connect_timeout: Annotated[Seconds, "time to open a connection for searches or writes"] = 2.0
    node_opens: Annotated[
        Count,
        "connections that are opened at once, to all nodes together; the most needed come first, and one "
        "that takes a second lets the next begin",
    ] = 16
    name_interval: Annotated[
        Seconds,
        "time between two look-ups of a host's name; connections to an address that it does not have any "
        "more are replaced",
    ] = 10.0
    tcp_timeout: Annotated[
        TcpSeconds,
        "time after which a connection ends whose other end acknowledges nothing; an idle one is asked after "
        "as long, and ends after twice this time",
    ] = 15.0
    connection_check: Annotated[
        SecondsOrZero,
        "a connection that has idled for so long is asked whether it lives before it is used",
    ] = 5.0
    connection_max_idle: Annotated[
        Seconds, "time after which a connection that nothing has used is closed, one at each probe"
    ] = 300.0
    connection_max_age: Annotated[
        Seconds, "age at which a connection is replaced, up to a fifth earlier so that not all are at once"
    ] = 1800.0
    cancel_timeout: Annotated[
        Seconds,
        "time for a node to confirm that it cancelled a statement; then the connection is given up",
    ] = 1.0
    probe_interval: Annotated[Seconds, "time between two health probes of a node"] = 0.5
    probe_timeout: Annotated[Seconds, "time for a probe; a node that takes longer is down"] = 1.0
    probe_rate: Annotated[
        Rate,
        "probes of all nodes together per second and process at most; where `probe_interval` would need "
        "more, each node is probed less often",
    ] = 300.0
    probe_connect_timeout: Annotated[
        Seconds, "time to open a connection for probes to a node that is down, once its turn has come"
    ] = 5.0
    reconnect_max: Annotated[
        Seconds,
        "longest pause between two attempts to reach a node that is down; it grows from `probe_interval` by "
        "half each time, up to twice `probe_interval` while the node's shard lacks a primary",
    ] = 5.0
    failover_wait: Annotated[
        SecondsOrZero,
        "time that a write waits for a shard that has no primary, as during a failover; then it fails",
    ] = 5.0
    max_lag: Annotated[
        Seconds,
        "a replica that lacks what its primary wrote this long ago is not read until it has caught up",
    ] = 10.0
    lag_policy: Annotated[
        Literal["primary", "stale", "error"],
        "when only such replicas are left: `stale` reads them and says so in `coverage`, `primary` reads "
        "the primary even if `primary_reads` forbids it, `error` reads nobody",
    ] = "stale"
    primary_reads: Annotated[
        Literal["equal", "last_resort", "never"],
        "primaries are read like replicas (`equal`), only when no replica can be (`last_resort`), or `never`",
    ] = "equal"
    zone: Annotated[Name, "nodes of this zone are read first, the others when these cannot answer"] = ""
    statistics_interval: Annotated[
        SecondsOrZero,
        "time between two readings of what `ANALYZE` has found in the columns that filters know, "
        "from one node of each shard; 0 reads none",
    ] = 60.0
    schema_check_interval: Annotated[
        SecondsOrZero,
        "time between two looks at whether the tables of a shard are [as the map "
        "says](operations.md#schema-check); one where they are not is looked at every few seconds; 0 never "
        "looks",
    ] = 300.0
    max_ejected: Annotated[
        Share,
        "the share of a shard's nodes that may be left out at once for keeping silent or failing although "
        "probes find them well; with less than 0.5, none of two",
    ] = 0.5
    hedge_quantile: Annotated[
        Share,
        "a shard's second node is asked when the first has taken longer than this share of the recent "
        "searches; 0 turns that off",
    ] = 0.95
    hedge_budget: Annotated[Share, "such second questions per question at most; ten may come at once"] = 0.05
    retry_budget: Annotated[
        Share,
        "retries on another node per search, at most; a thousand may come at once",
    ] = 0.2
    # caches
    l1_bytes: Annotated[CountOrZero, "size of the cache in memory; 0 turns it off"] = 64 << 20
    body_cache_bytes: Annotated[
        CountOrZero,
        "size of the memory of requests that came before, which need not be decoded again; 0 turns it off",
    ] = 32 << 20
    l2_timeout: Annotated[Seconds, "time that a search may lose to Redis"] = 0.02
    l2_pause: Annotated[
        SecondsOrZero,
        "time between two questions to a Redis that failed or was too slow, which is not used until it "
        "answers one, and between two writes to one that refuses them",
    ] = 2.0
    l2_max_entry_bytes: Annotated[CountOrZero, "largest answer, or ranking, kept in Redis; 0 keeps none"] = (
        1 << 20
    )
    ranking_depth: Annotated[
        Count,
        "rows of a ranking that is kept for its [pages](http.md#pages-by-cursor), within the collection's "
        "`max_k`; each takes some 20 bytes",
    ] = 1000
    ranking_ttl: Annotated[
        Seconds, "for how long rankings are kept for their pages, from when they are made"
    ] = 600.0
    ranking_timeout: Annotated[
        Seconds,
        "time that a page may wait for Redis, where that has to keep or to bring its ranking",
    ] = 0.5
    ranking_bytes: Annotated[
        CountOrZero,
        "size of the memory of rankings; 0 keeps them in Redis alone, or none where there is no Redis",
    ] = 32 << 20
    # models
    model_requests: Annotated[
        Count,
        "requests to one [service for texts](models.md) at the same time, and connections to it",
    ] = 32
    model_queue: Annotated[
        CountOrZero, "requests that may wait for one of these to end; 429 beyond it; 0 lets none wait"
    ] = 256
    model_attempts: Annotated[
        Count,
        "attempts at a request to a service, while its time lasts and another attempt may help",
    ] = 3
    model_patience: Annotated[
        SecondsOrZero,
        "how long texts of documents are sent again while their service makes no vector at all; a document "
        "whose text got none fails",
    ] = 2.0
    model_failures: Annotated[
        Count, "failures of a service in a row after which it is not asked for a while"
    ] = 5
    model_pause: Annotated[
        Seconds,
        "that while; then one request tries, and if it fails the while is twice as long, up to "
        "`model_pause_max`",
    ] = 1.0
    model_pause_max: Annotated[Seconds, "longest time for which a service that fails is not asked"] = 30.0
    model_answer_bytes: Annotated[Count, "largest answer of a service; a larger one counts as a failure"] = (
        64 << 20
    )
    embedding_cache_bytes: Annotated[
        CountOrZero, "size of the cache of texts' vectors in memory; 0 turns it off"
    ] = 16 << 20
    embedding_cache_ttl: Annotated[
        SecondsOrZero,
        "how long a text's vector is kept in memory and in Redis; 0 keeps none",
    ] = 3600.0
    # recall
    recall_sample_rate: Annotated[
        Share,
        "share of searches that are repeated exactly, in the background, to [measure "
        "recall](recall.md#while-it-runs); 0 turns that off",
    ] = 0.001
    recall_budget: Annotated[
        Rate,
        "such repetitions per second at most; what is chosen beyond it is dropped. One reads every row of "
        "every shard",
    ] = 0.1


class Setting:
    """A field of `Settings`, as its annotation describes it; `description` is Markdown.

    `prefix` begins the name of its environment variable.
    """

    def __init__(self, field: msgspec.structs.FieldInfo, prefix: str = "PGSCATTER_") -> None:
        self.name = field.name
        self.default = field.default
        self.flag = f"--{field.name.replace('_', '-')}"
        self.variable = f"{prefix}{field.name.upper()}"
        self._values = field.type
        self._type, *bounds, self.description = get_args(field.type)
        self._bounds: Meta | None = bounds[0] if bounds else None

    def __repr__(self) -> str:
        return f"<Setting {self.name}: {self.takes}>"

    @property
    def metavar(self) -> str:
        """What `--help` shows for a value."""
        if self._bounds is None:
            return "|".join(get_args(self._type))
        return str((self._bounds.extra or {})["metavar"])

    @property
    def takes(self) -> str:
        """Its values in words, such as `a whole number above 0`."""
        bounds = self._bounds
        if bounds is None:
            return f"one of {', '.join(get_args(self._type))}"
        least = " above 0" if bounds.gt == 0 else " of at least 0" if bounds.ge == 0 else ""
        most = "" if bounds.le is None or bounds.le == _MOST else f" and at most {bounds.le:g}"
        return f"{bounds.title}{least}{most}"

    def parse(self, text: str) -> object:
        """The value that `text` says.

        Raises:
            ValueError: naming what it takes.
        """
        if self.name == "cors_origins":
            origins_of(text)
        number = self._type in (int, float)
        try:
            # The types read `1_000` and ` 1`, too; msgspec, whose error is a ValueError, sees to the bounds.
            return msgspec.convert(self._type(text) if number else text, self._values)
        except ValueError as exc:
            raise ValueError(f"expected {self.takes}, got {text[:40]!r}") from exc


def described() -> tuple[Setting, ...]:
    """All settings, in the order of the documentation."""
    return tuple(map(Setting, msgspec.structs.fields(Settings)))


def origins_of(text: str) -> tuple[str, ...]:
    """The origins that `cors_origins` lists: as browsers send them, or `*` for all.

    Raises:
        ValueError
    """
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"expected origins such as https://app.example.com, or *, got {origin[:80]!r}")
    return origins
