"""Writes the table of limits in `docs/models.md`, as `router.settings_docs` does with the router's settings.

python -m router.model_service.limits_docs docs/models.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from router.model_service.limits import described
from router.settings_docs import rewritten

__all__ = ["main"]


def main() -> None:
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text(encoding="utf-8"), described()), encoding="utf-8")


if __name__ == "__main__":
    main()
