"""The edge's view of text models: a collection and a text in, a vector or a caller's error out."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.query.errors import InvalidError, MisconfiguredError
from router.text.model import TextModel
from shard_config.model import Collection

__all__ = ["TextModels"]


class TextModels:
    """The models of a map's collections, each read when it is first needed and then kept."""

    def __init__(self) -> None:
        self._models: dict[str, TextModel] = {}  # under the lock
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<TextModels {len(self._models)} loaded>"

    def embed(self, collection: Collection, text: str) -> NDArray[np.float32]:
        """The vector of `text` in the collection's space.

        Raises:
            InvalidError: the collection has no model, its model does not fit, or knows none of the words.
            MisconfiguredError: the model cannot be read.
        """
        if collection.text_model is None:
            raise InvalidError.at("text", f"collection {collection.name} has no text model; send a vector")
        model = self._model(collection.text_model, collection.name)
        wanted = collection.vector.dimensions
        if model.dimensions != wanted:
            had = model.dimensions
            raise InvalidError.at(
                "text", f"the text model of {collection.name} makes {had} dimensions, not its {wanted}"
            )
        try:
            return model.embed(text)
        except ValueError as exc:
            raise InvalidError.at("text", str(exc)) from exc

    def warm(self, collection: Collection) -> None:
        """Read the collection's model now, so that the first search does not wait for it.

        Raises:
            MisconfiguredError: the model cannot be read.
        """
        if collection.text_model is not None:
            self._model(collection.text_model, collection.name)

    def _model(self, path: str, collection: str) -> TextModel:
        with self._lock:  # two first searches must not read it twice
            model = self._models.get(path)
            if model is None:
                try:
                    model = TextModel.load(Path(path))
                except (OSError, ValueError, ImportError) as exc:
                    reason = exc.strerror if isinstance(exc, OSError) else exc
                    what = f"the text model of collection {collection}, {Path(path).name}"
                    hidden = f"the text model of collection {collection} cannot be read"
                    raise MisconfiguredError(f"{what}: {reason}").hidden(hidden) from exc
                self._models[path] = model
            return model
