"""The searches that the demo shows, and what each answer has to hold for the demo to be a success."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from deploy.demo.commands import STEP_SECONDS, DemoError, command, typed

__all__ = ["SEARCHES", "Shown", "arguments", "show"]


class Shown(NamedTuple):
    """One search; `expected` is a pattern for the first `lines` lines of its output, or all of them."""

    about: str
    sought: tuple[str, ...]
    expected: str
    lines: int | None = None


_LRU = ("--text", "least recently used cache decorator", "--k", "5")
# What `math.gcd` and `random` are about: the one in words that it does not have, the other by a name.
_GCD = ("--text", "calculate the greatest shared factor", "--k", "3")
_TWISTER = ("--text", "Mersenne Twister random generator", "--k", "3")
_RANDOM, _WITHOUT_RANDOM = "Random variable generators", r"(?s)\A(?!.*Random variable generators)"
_WORDS, _HYBRID = ("--mode", "fulltext"), ("--mode", "hybrid")
SEARCHES = (
    Shown("By meaning, over all shards:", _LRU, r"\bfunctools\.lru_cache\b", lines=4),
    Shown("The same again comes from the cache:", _LRU, r"\bcache l1\b"),
    Shown("Meaning finds what is said in other words:", _GCD, r"\bmath\.gcd\b", lines=2),
    Shown("The words themselves do not:", (*_GCD, *_WORDS), r"(?s)\A(?!.*\bmath\.gcd\b)"),
    Shown("A name that the model knows nothing of is not found by meaning:", _TWISTER, _WITHOUT_RANDOM),
    Shown("But by its words:", (*_TWISTER, *_WORDS), _RANDOM, lines=2),
    Shown("Both, fused, with the rank in each list:", (*_TWISTER, *_HYBRID), _RANDOM, lines=4),
    Shown(
        "Only what a filter lets through:",
        ("--text", "wait for several tasks to finish", "--filter", '{"module": "asyncio"}', "--k", "5"),
        r"\b5 hits in\b",
    ),
    Shown(
        "What each shard did:",
        ("--text", "read the lines of a text file", "--k", "3", "--explain"),
        r"\bon each shard\b",
    ),
)


def arguments(url: str, *sought: str) -> Sequence[str]:
    return ("search", "--url", url, "--collection", "stdlib", *sought)


def show(shown: Shown, url: str) -> None:
    """Print the command and its answer.

    Raises:
        DemoError: the search failed, or its answer is not what it has to be.
    """
    asked = arguments(url, *shown.sought)
    print(f"\n{shown.about}\n$ {typed(asked)}", flush=True)
    done = subprocess.run(command(asked), stdout=subprocess.PIPE, text=True, timeout=STEP_SECONDS)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise DemoError(f"the search failed with status {done.returncode}")
    if not re.search(shown.expected, "\n".join(done.stdout.splitlines()[: shown.lines])):
        raise DemoError(f"{shown.expected!r} is not where it should be in the answer")
