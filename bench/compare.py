"""A finished run beside an earlier one.

A difference counts as one only where the rounds of both runs do not overlap; all else may be noise.
"""

from __future__ import annotations

from bench.errors import BenchError
from bench.report import figure, table
from bench.results import Metric, Run

__all__ = ["compare"]


def compare(before: Run, after: Run) -> str:
    """Both runs' metrics as Markdown, and what else differs between them.

    Raises:
        BenchError: they are of different scenarios.
    """
    if before.scenario != after.scenario:
        raise BenchError(f"{before.scenario} and {after.scenario} are different scenarios")
    earlier = {metric.name: metric for metric in before.outcome.metrics}
    later = {metric.name: metric for metric in after.outcome.metrics}
    rows = [
        [
            name,
            figure(old.value, old.unit) if (old := earlier.get(name)) else "not there",
            figure(new.value, new.unit) if (new := later.get(name)) else "not there",
            *_change(old, new),
        ]
        for name in [*earlier, *(name for name in later if name not in earlier)]
    ]
    parts = [f"# {before.scenario}: {before.began} and {after.began}"]
    if differences := _differences(before, after):
        parts.append("Not measured alike: " + "; ".join(differences) + ".")
    parts.append(table(["", "before", "after", "change", ""], rows))
    return "\n\n".join(parts) + "\n"


def _change(old: Metric | None, new: Metric | None) -> tuple[str, str]:
    if old is None or new is None or not old.value or new.value is None:
        return "", ""
    change = f"{new.value / old.value - 1:+.1%}"
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return change, ""
    if new.low <= old.high and old.low <= new.high:
        return change, "within the spread"
    return change, "better" if (new.low > old.high) == (new.better == "higher") else "worse"


def _differences(before: Run, after: Run) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        ("dataset", before.dataset, after.dataset),
        ("rows", before.rows, after.rows),
        *(
            (name, getattr(before.environment, name), getattr(after.environment, name))
            for name in ("processor", "cores", "memory_bytes", "system", "python", "commit")
        ),
    ]
    for kind, old, new in (
        ("setting", before.settings, after.settings),
        ("version of", before.environment.packages, after.environment.packages),
        ("server's", before.environment.servers, after.environment.servers),
        ("router's", before.environment.router, after.environment.router),
    ):
        pairs += [(f"{kind} {name}", old.get(name), new.get(name)) for name in {**old, **new}]
    return [f"{name} {one} and {other}" for name, one, other in pairs if one != other]
