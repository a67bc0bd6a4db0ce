"""`python -m tests.wrong_clock SECONDS ARGUMENT…`: `pgscatter` by a clock that is so far ahead."""

from __future__ import annotations

import sys
import time

if __name__ == "__main__":
    ahead, _right = float(sys.argv.pop(1)), time.time
    # Before anything of ours is imported, which could keep the function itself.
    time.time = lambda: _right() + ahead
    time.time_ns = lambda: int(time.time() * 1e9)
    from router.cli import main

    sys.exit(main(sys.argv[1:]))
