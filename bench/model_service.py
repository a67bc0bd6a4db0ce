"""How many texts a second the default model service embeds, and how many WordLlama does when it is called.

    python -m bench.model_service [--connections 8] [--texts 64] [--seconds 5] [--rounds 3]

The texts are 200 characters each of the docstrings of Python's standard library. Both are measured in turn,
several times: on a machine that also does other things, their ratio says more than either.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from deploy.corpus.documents import entries
from deploy.local.models import ModelService, model_service

__all__ = ["main"]

_CHARS = 200
_DIMENSIONS = 256


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model_service")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--texts", type=int, default=64, help="of one request")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    batches = list(_batches(args.texts))
    found: dict[str, list[float]] = {"direct": [], "base64": [], "float": []}
    with model_service("--log-level", "warning") as service:
        for _ in range(args.rounds):
            found["direct"].append(_direct(batches, args.seconds))
            for form in ("base64", "float"):
                rate = asyncio.run(_served(service, batches, form, args.connections, args.seconds))
                found[form].append(rate)
    for name, rates in found.items():
        ratios = [rate / direct for rate, direct in zip(rates, found["direct"], strict=True)]
        shown = ", ".join(f"{rate:,.0f}" for rate in rates)
        sys.stdout.write(f"{name:7} {shown} texts/s, {statistics.median(ratios):.2f} of direct calls\n")
    return 0


def _batches(size: int) -> Iterator[list[str]]:
    whole = " ".join(" ".join(entry.text.split()) for entry in entries())
    texts = [whole[begin : begin + _CHARS] for begin in range(0, len(whole) - _CHARS, _CHARS)]
    for begin in range(0, len(texts) - size, size):
        yield texts[begin : begin + size]


def _direct(batches: list[list[str]], seconds: float) -> float:
    """Texts per second of WordLlama's own method, in this process."""
    import wordllama

    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    began, count = time.perf_counter(), 0
    for batch in cycle(batches):
        model.embed(batch, norm=True)
        count += len(batch)
        if (took := time.perf_counter() - began) >= seconds:
            return count / took
    raise AssertionError


async def _served(
    service: ModelService,
    batches: list[list[str]],
    form: str,
    connections: int,
    seconds: float,
) -> float:
    """Texts per second of the service, asked by `connections` that each wait for one answer at a time."""
    requests = [_request(batch, form) for batch in batches]
    loop = asyncio.get_running_loop()
    began = loop.time()
    end = began + seconds

    async def ask(mine: Iterator[tuple[bytes, int]]) -> int:
        host, _, port = service.root.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        count = 0
        for request, texts in mine:
            if loop.time() >= end:
                break
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if count == 0:
                _check(head, body, texts, form)
            count += texts
        writer.close()
        return count

    counts = await asyncio.gather(
        *(ask(cycle(islice(requests, start, None, connections))) for start in range(connections))
    )
    return sum(counts) / (loop.time() - began)


def _request(batch: list[str], form: str) -> tuple[bytes, int]:
    body = json.dumps({"model": "wordllama", "input": batch, "encoding_format": form}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    return head.encode() + body, len(batch)


def _check(head: bytes, body: bytes, texts: int, form: str) -> None:
    assert head.startswith(b"HTTP/1.1 200 "), head + body
    data = json.loads(body)["data"]
    assert len(data) == texts
    if form == "base64":
        assert len(base64.b64decode(data[0]["embedding"])) == 4 * _DIMENSIONS
    else:
        assert len(data[0]["embedding"]) == _DIMENSIONS


if __name__ == "__main__":
    sys.exit(main())
