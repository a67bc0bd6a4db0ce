"""Models as the command line names them, NAME=BACKEND, and how each is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from router.model_service.backend import BackendError, Embedder, Reranker
from router.model_service.static import WordLlamaEmbedder, WordLlamaReranker
from router.model_service.transformer import CrossEncoderReranker, TransformerEmbedder

__all__ = ["DEFAULT", "ModelSpec", "load_embedder", "load_reranker"]

_T = TypeVar("_T")

# As names of models are elsewhere: `BAAI/bge-small-en-v1.5`, `all-minilm:33m`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")

_EMBEDDERS: Mapping[str, Callable[[str], Embedder]] = {
    "wordllama": lambda _: WordLlamaEmbedder(),
    "sentence-transformers": TransformerEmbedder,
}
_RERANKERS: Mapping[str, Callable[[str], Reranker]] = {
    "wordllama": lambda _: WordLlamaReranker(),
    "cross-encoder": CrossEncoderReranker,
}


class ModelSpec(msgspec.Struct, frozen=True):
    """A model to load: the name that requests give it, its kind of backend, and that one's source."""

    name: str
    kind: str
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """
        Raises:
            ValueError: saying what is expected.
        """
        name, equals, backend = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(
                f"expected NAME=BACKEND, with a name of at most 100 letters, digits and ._:/@+-, "
                f"got {text[:120]!r}"
            )
        kind, _, source = backend.partition(":")
        if kind not in _EMBEDDERS.keys() | _RERANKERS.keys():
            raise ValueError(
                "expected wordllama, sentence-transformers:PATH_OR_NAME or cross-encoder:PATH_OR_NAME behind "
                f"{name}=, got {backend[:80]!r}"
            )
        if bool(source) == (kind == "wordllama"):
            more = "takes nothing behind it" if source else f"needs a path or a name: {kind}:PATH_OR_NAME"
            raise ValueError(f"{name}={backend[:80]}: {kind} {more}")
        return cls(name, kind, source)


DEFAULT = ModelSpec("wordllama", "wordllama")


def load_embedder(spec: ModelSpec) -> Embedder:
    """
    Raises:
        BackendError
    """
    return _loaded(spec, _EMBEDDERS, "embed")


def load_reranker(spec: ModelSpec) -> Reranker:
    """
    Raises:
        BackendError
    """
    return _loaded(spec, _RERANKERS, "re-rank")


def _loaded(spec: ModelSpec, kinds: Mapping[str, Callable[[str], _T]], verb: str) -> _T:
    make = kinds.get(spec.kind)
    if make is None:
        raise BackendError(f"model {spec.name!r}: {spec.kind} cannot {verb}; {', '.join(kinds)} can")
    try:
        return make(spec.source)
    except BackendError as exc:
        raise BackendError(f"model {spec.name!r}: {exc}") from exc
