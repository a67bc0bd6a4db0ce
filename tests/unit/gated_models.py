"""Models for tests of the service that need to say when, and what, a model answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from router.model_service.backend import Floats, Output

__all__ = ["GatedModel", "GatedReranker", "Told"]

# Of waits for what comes in milliseconds where nothing else uses the processor.
SECONDS = 15.0


class Told:
    """What a worker has told."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.tokens = 0
        self.truncated = 0
        self.failures = 0
        self.left = 0

    def computed(self, items: int, tokens: int, truncated: int, seconds: float) -> None:
        assert seconds > 0
        self.batches.append(items)
        self.tokens += tokens
        self.truncated += truncated

    def failed(self) -> None:
        self.failures += 1

    def abandoned(self) -> None:
        self.left += 1


class GatedModel:
    """Each text's vector is its length and 1, scaled; a call waits while the gate is closed.

    A text that holds `poison` makes the call fail, one that holds `nan` gets a broken vector, and of one that
    holds `unknown` the model knows nothing. It reads eight words of a text.
    """

    backend = "gated"
    dimensions = 2
    shorter: Sequence[int] = (1,)

    def __init__(self, *, closed: bool = False) -> None:
        self.gate = threading.Event()
        self.called = threading.Semaphore(0)
        self.calls: list[list[str]] = []
        if not closed:
            self.gate.set()

    def run(self, items: Sequence[str]) -> Output:
        self.calls.append(list(items))
        self.called.release()
        assert self.gate.wait(SECONDS)
        if any("poison" in item for item in items):
            raise ValueError("poison")
        values = np.array([[len(item), 1.0] for item in items], np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        values[["nan" in item for item in items]] = np.nan
        values[["unknown" in item for item in items]] = 0
        tokens = np.array([len(item.split()) for item in items])
        return Output(values, np.minimum(tokens, 8), tokens > 8)


class GatedReranker:
    """The score of a text is how often the query is in it; what is said of `GatedModel` holds for texts."""

    backend = "gated"

    def __init__(self) -> None:
        self._texts = GatedModel()

    def run(self, items: Sequence[tuple[str, str]]) -> Output:
        made = self._texts.run([text for _, text in items])
        scores = np.array([float(text.count(query)) for query, text in items])
        scores[np.isnan(made.values[:, 0])] = np.nan
        return Output(scores, made.tokens, made.truncated)

    def relevance(self, scores: Floats) -> Floats:
        return scores / (1 + scores)
