"""Text becomes a vector here, at the edge; nothing below it knows text."""

from router.text.model import TextModel, fit
from router.text.models import TextModels

__all__ = ["TextModel", "TextModels", "fit"]
