"""Hands a port over from a router to its successor without losing a connection.

With SO_REUSEPORT the kernel spreads new connections over all sockets that listen on a port, and resets those
that wait in the queue of one that is closed. So the newest socket takes all new connections from the moment
it listens, and the one before it has an empty queue long before it closes.

On Linux a filter that every account may set chooses the socket. They are numbered in the order in which they
began to listen, and the last moves into the place of one that is closed; so a successor is number 1. A number
that does not exist means that the kernel spreads as before: if the successor goes, the older one serves on.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

__all__ = ["take_over"]

_SO_ATTACH_REUSEPORT_CBPF = 51
_RETURN_CONSTANT = 0x06  # BPF_RET | BPF_K
_SUCCESSOR = 1


def take_over(listener: socket.socket) -> None:
    """Let `listener`, which listens, have all new connections of its port, if it shares the port."""
    if sys.platform != "linux" or listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        return
    filter_ = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN_CONSTANT, 0, 0, _SUCCESSOR))
    program = struct.pack("@HP", 1, ctypes.addressof(filter_))
    # Where a sandbox forbids it, connections are spread, and a few may be reset at the older one's end.
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
