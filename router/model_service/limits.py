"""What an operator can set of the model service: each field is a flag and an environment variable.

The annotations are read as those of `router.settings.Settings` are.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from router.settings import Count, Seconds, SecondsOrZero, Setting

__all__ = ["Limits", "described"]

_PREFIX = "PGSCATTER_MODELS_"


class Limits(msgspec.Struct, frozen=True):
    max_body_bytes: Annotated[Count, "largest body; 413 beyond it"] = 4 << 20
    max_texts: Annotated[Count, "texts in one request; 422 beyond it"] = 2048
    max_text_chars: Annotated[Count, "characters of one text; 422 beyond it"] = 32768
    max_concurrent: Annotated[
        Count, "requests for a model answered at the same time; 429 beyond it, at once"
    ] = 128
    queue_texts: Annotated[Count, "texts that may wait for a model; 429 beyond it, unless none waits"] = 8192
    queue_chars: Annotated[
        Count, "characters that these may have together; 429 beyond it, unless none waits"
    ] = 16 << 20
    batch_texts: Annotated[Count, "texts that a model is given in one call at most"] = 64
    batch_chars: Annotated[
        Count, "characters of these together; a longer text is given to the model alone"
    ] = 1 << 16
    request_timeout: Annotated[
        Seconds,
        "time for a body to come, time from then until its answer is made, after which it is 503, and time "
        "for a client to take the answer",
    ] = 60.0
    drain_delay: Annotated[
        SecondsOrZero,
        "time after SIGTERM in which requests are still taken while `/readyz` says no, so that load "
        "balancers turn to another service; Ctrl-C and a second signal skip it",
    ] = 5.0
    drain_timeout: Annotated[Seconds, "time for requests under way to finish after that, or after Ctrl-C"] = (
        30.0
    )


def described() -> tuple[Setting, ...]:
    """All limits, in the order of the documentation."""
    return tuple(Setting(field, _PREFIX) for field in msgspec.structs.fields(Limits))
