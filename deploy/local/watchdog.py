"""Takes a cluster down when its owner is gone. Run as `python -m deploy.local.watchdog DIR`.

The standard input is a pipe that the owner holds open. The kernel closes it when the owner ends, in whatever
way. If the owner has written a byte before, it has let go of the cluster, which then stays as it is.
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
