"""Whether an application keeps its own OpenAPI's word, asked with generated requests.

For any application: the tests of the edge use it over a router in memory, others over a real one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisDeprecationWarning
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def assert_conforms(
    app: Any,
    *,
    examples: int = 15,
    path_parameters: Mapping[str, Sequence[str]] | None = None,
    samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Counter[tuple[str, int]]:
    """Send each operation well-formed and ill-formed requests, `examples` of each, and check the answers.

    Args:
        path_parameters: values that exist; every other request uses them, because a collection that was
            made up only ever finds 404.
        samples: requests that succeed, by operation such as `GET /v1/nodes`, as the arguments of a
            schemathesis `Case`; they are sent before anything else, in this order.

    Returns:
        How often each operation was answered with which status.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=dict(headers or {}))
    operations = {operation.label: operation for operation in (r.ok() for r in schema.get_all_operations())}
    statuses: Counter[tuple[str, int]] = Counter()

    def send(case: Any) -> None:
        response = case.call_and_validate(checks=CHECKS, headers=dict(headers or {}))
        statuses[case.operation.label, response.status_code] += 1

    for label, cases in (samples or {}).items():
        for arguments in cases:
            send(operations[label].Case(**arguments))
    for operation in operations.values():
        modes = [GenerationMode.POSITIVE]
        if operation.body or operation.query:
            # Any string is a path, so without these there is no request that is wrong.
            modes.append(GenerationMode.NEGATIVE)
        for mode in modes:
            _generate(operation, mode, examples, path_parameters or {}, send)
    return statuses


def _generate(
    operation: Any, mode: GenerationMode, examples: int, existing: Mapping[str, Sequence[str]], send: Any
) -> None:
    sent = 0

    @seed(20260131)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        nonlocal sent
        sent += 1
        for name in case.path_parameters or {}:
            values = existing.get(name)
            if values and sent % 2:
                case.path_parameters[name] = values[sent // 2 % len(values)]
        send(case)

    with warnings.catch_warnings():
        # The application's thread draws random numbers meanwhile; Hypothesis takes that for the strategy.
        warnings.filterwarnings("ignore", "Do not use the `random` module", HypothesisDeprecationWarning)
        run()
