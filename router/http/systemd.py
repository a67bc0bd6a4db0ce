"""What systemd hands to a service and hears from it; without systemd nothing of it happens.

`sd_listen_fds(3)`: a socket that systemd holds open over restarts, so that connections wait meanwhile.
`sd_notify(3)`: a line when the service is ready, and when it ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

__all__ = ["inherited_listener", "notify"]

_FIRST = 3


def inherited_listener(env: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that this process was started with, if it was.

    Raises:
        ValueError: it is not one TCP socket.
    """
    pid, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    env.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count:
        return None
    if count != "1":
        raise ValueError(f"LISTEN_FDS={count}, and the router listens on one socket")
    try:
        listener = socket.socket(fileno=_FIRST)
    except OSError as exc:
        raise ValueError(f"LISTEN_FDS=1, and descriptor {_FIRST} is no socket: {exc.strerror}") from exc
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
        listener.detach()
        raise ValueError(f"LISTEN_FDS=1, and descriptor {_FIRST} is no TCP socket")
    listener.set_inheritable(True)
    return listener


def notify(state: str, env: MutableMapping[str, str]) -> None:
    """Tell the service manager, if there is one, such as `READY=1`."""
    address = env.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.settimeout(1.0)
        line.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
