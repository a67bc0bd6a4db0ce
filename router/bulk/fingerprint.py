"""Telling files apart without reading them whole."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import BinaryIO

__all__ = ["fingerprint"]

_SAMPLE = 1 << 20


def fingerprint(file: BinaryIO) -> str:
    """A digest of the size and of a mebibyte at the head, in the middle and at the tail."""
    size = os.fstat(file.fileno()).st_size
    digest = blake2b(str(size).encode(), digest_size=16)
    for start in sorted({0, max(0, (size - _SAMPLE) // 2), max(0, size - _SAMPLE)}):
        file.seek(start)
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
