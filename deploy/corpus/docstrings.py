"""Prints every public docstring of the running Python's standard library, as JSON.

`deploy.corpus.documents` runs it as a script of its own, because it imports the whole library: a module that
prints, warns, sets a signal handler or spoils a global does so in a process that is about to end.
Importing beats parsing sources here, since half of what people look for (`functools.reduce`,
`itertools.groupby`, `math.isclose`) is written in C, and it takes half a second.

Invariant: the result depends on the Python that runs it and on nothing else, so it is in order of
names and an object that has several names appears once.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Set
from types import ModuleType
from typing import Any, NamedTuple

__all__: list[str] = []

# Not worth their side effects (a browser, a poem, a window) or not documentation for anybody.
_SKIPPED = frozenset(
    {
        *("antigravity", "encodings", "genericpath", "idlelib", "lib2to3", "pydoc_data"),
        *("test", "this", "turtle", "turtledemo"),
    }
)
_SKIPPED_PARTS = frozenset({"idle_test", "test", "tests"})
# The name that everybody writes is not the one the module has.
_KNOWN_AS = {"posixpath": "os.path"}


class _Found(NamedTuple):
    name: str
    module: str
    kind: str
    value: object
    text: str


def _modules(names: Iterable[str]) -> Iterator[tuple[str, ModuleType]]:
    """Each module that exists on this machine, packages' public submodules included."""
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # for another system, or its C library was missing when Python was built
        yield _KNOWN_AS.get(name, name), module
        parts = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))]
        yield from _modules(
            f"{name}.{part}"
            for part in sorted(parts)
            if not part.startswith("_") and part not in _SKIPPED_PARTS
        )


def _members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What the module offers as its own: what it exports, or else what it defines."""
    exported = getattr(module, "__all__", None)
    for name, value in sorted(vars(module).items()):
        if exported is None:
            offered = getattr(value, "__module__", None) == module.__name__
        else:
            offered = name in exported
        if offered and not name.startswith("_"):
            yield name, value


def _text(value: object) -> str:
    text = getattr(value, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _documented(name: str, module: ModuleType, public: Set[int]) -> Iterator[_Found]:
    top = name.partition(".")[0]
    yield _Found(name, top, "module", module, _text(module))
    for part, value in _members(module):
        if isinstance(value, type):
            yield _Found(f"{name}.{part}", top, "class", value, _text(value))
            yield from _attributes(f"{name}.{part}", top, value, public)
        elif inspect.isroutine(value):
            yield _Found(f"{name}.{part}", top, "function", value, _text(value))


def _attributes(name: str, top: str, owner: type[Any], public: Set[int]) -> Iterator[_Found]:
    """The class's own public methods and properties: inherited ones stand with the class that wrote them.

    Unless nobody can name that class, as `_socket.socket`, which is there as a type only: then they
    stand here.
    """
    members: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        if base is owner or id(base) not in public:
            members.update(vars(base))
    for part, value in sorted(members.items()):
        if part.startswith("_"):
            continue
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if inspect.isroutine(value):
            yield _Found(f"{name}.{part}", top, "method", value, _text(value))
        elif inspect.isdatadescriptor(value):
            yield _Found(f"{name}.{part}", top, "property", value, _text(value))


def _preference(found: _Found) -> tuple[int, bool, str]:
    """Of an object's names the shortest path wins (`asyncio.gather`), then the one it calls itself."""
    own = getattr(found.value, "__qualname__", "")
    return found.name.count("."), not found.name.endswith(own), found.name


def collect() -> list[tuple[str, str, str, str]]:
    """(name, top-level module, kind, docstring) of everything documented, in order of names."""
    names = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    modules = list(_modules(sorted(names - _SKIPPED)))
    public = {
        id(value)
        for _, module in modules
        for part, value in _members(module)
        if isinstance(value, type) and value.__name__ == part
    }
    found = [item for name, module in modules for item in _documented(name, module, public) if item.text]
    best: dict[int, _Found] = {}  # by identity: everything in it is alive in `found`
    for item in sorted(found, key=_preference):
        best.setdefault(id(item.value), item)
    kept = {item.name: (item.name, item.module, item.kind, item.text) for item in best.values()}
    return [kept[name] for name in sorted(kept)]


def main() -> None:
    # What a module prints while it is imported must not end up between the braces.
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    with result:
        json.dump(collect(), result)


if __name__ == "__main__":
    main()
