"""Vectors of texts by the words that they share: a model that is fitted to a corpus and saved."""

from router.text.model import TextModel, fit

__all__ = ["TextModel", "fit"]
