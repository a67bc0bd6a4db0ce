"""Takes a cluster down when its owner is gone. Run as `python -m deploy.local.watchdog DIR`.

The owner holds the other end of our standard input. Whatever ends it, SIGKILL included, closes that
end; a byte before the end says that all is well.
"""

from __future__ import annotations

import signal
import sys

from deploy.local.cluster import Cluster


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        Cluster(sys.argv[1]).stop_all()


if __name__ == "__main__":
    main()
