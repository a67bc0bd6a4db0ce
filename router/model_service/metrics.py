"""Metrics of the model service, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["Metrics", "ModelMetrics"]

_REQUEST_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ModelMetrics:
    """Of one model; its worker's thread calls this, and counters may be used by several threads."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._texts = metrics.texts.labels(model)
        self._tokens = metrics.tokens.labels(model)
        self._truncated = metrics.truncated.labels(model)
        self._batch_texts = metrics.batch_texts.labels(model)
        self._batch_seconds = metrics.batch_seconds.labels(model)
        self._failures = metrics.failures.labels(model)
        self._abandoned = metrics.abandoned_requests.labels(model)

    def computed(self, items: int, tokens: int, truncated: int, seconds: float) -> None:
        self._texts.inc(items)
        self._tokens.inc(tokens)
        self._truncated.inc(truncated)
        self._batch_texts.observe(items)
        self._batch_seconds.observe(seconds)

    def failed(self) -> None:
        self._failures.inc()

    def abandoned(self) -> None:
        self._abandoned.inc()


class Metrics:
    """One registry, made with the service. Labels are templates of paths, names of models and fixed words."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.in_flight = Gauge(
            "pgscatter_models_in_flight_requests", "Requests being answered.", registry=registry
        )
        self._requests = Counter(
            "pgscatter_models_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "pgscatter_models_request_seconds",
            "Time from a request's head to its answer.",
            ["route"],
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self.rejected = Counter(
            "pgscatter_models_rejected_requests",
            "Requests answered with 429, by what was full.",
            ["reason"],
            registry=registry,
        )
        model = ["model"]
        self.texts = Counter("pgscatter_models_texts", "Texts computed.", model, registry=registry)
        self.tokens = Counter("pgscatter_models_tokens", "Tokens of these.", model, registry=registry)
        self.truncated = Counter(
            "pgscatter_models_truncated_texts",
            "Texts with more tokens than the model reads.",
            model,
            registry=registry,
        )
        self.batch_texts = Histogram(
            "pgscatter_models_batch_texts",
            "Texts of one call of a model.",
            model,
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        self.batch_seconds = Histogram(
            "pgscatter_models_batch_seconds",
            "Time that a call of a model took.",
            model,
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self.failures = Counter(
            "pgscatter_models_failed_requests", "Requests on which a model failed.", model, registry=registry
        )
        self.abandoned_requests = Counter(
            "pgscatter_models_abandoned_requests",
            "Requests whose client left, or whose time was over, before the answer.",
            model,
            registry=registry,
        )
        self._waiting = Gauge(
            "pgscatter_models_waiting_texts", "Texts that wait for a model.", model, registry=registry
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, waiting: Mapping[str, int]) -> bytes:
        """The text format; `waiting` are the texts that wait for each model."""
        for name, count in waiting.items():
            self._waiting.labels(name).set(count)
        return generate_latest(self._registry)

    def of_models(self, names: Iterable[str]) -> dict[str, ModelMetrics]:
        return {name: ModelMetrics(self, name) for name in names}
