"""The scenarios: each module here is one, with its summary as docstring and `run(context) -> Outcome`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from bench.context import Context
from bench.errors import BenchError
from bench.results import Outcome

__all__ = ["names", "own_data", "scenario", "summary"]


def names() -> list[str]:
    """In alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def scenario(name: str) -> Callable[[Context], Outcome]:
    """
    Raises:
        BenchError: there is none of that name.
    """
    if name not in names():
        raise BenchError(f"no scenario {name!r}; there are {', '.join(names())}")
    run: Callable[[Context], Outcome] = importlib.import_module(f"{__name__}.{name}").run
    return run


def own_data(name: str) -> str | None:
    """What the scenario searches, where it is no data set of vectors; the module says it as `OWN_DATA`."""
    found: str | None = getattr(importlib.import_module(f"{__name__}.{name}"), "OWN_DATA", None)
    return found


def summary(name: str) -> str:
    """The first line of the scenario's docstring."""
    return (importlib.import_module(f"{__name__}.{name}").__doc__ or "").strip().split("\n")[0]
