"""The files that a DSN names: certificates, keys and passwords, and what is wrong with them here.

The driver reads them with each connection. Its errors do not say which file they are about, and it passes
over a file of passwords that is missing. Nothing here says what stands in a file.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Iterator, Mapping

from shard_config.dsn import parameters

__all__ = ["file_complaints"]

_FILES = ("sslrootcert", "sslcrl", "sslcert", "sslkey", "passfile")
# Whoever else may read it has the key, or the password.
_SECRET = ("sslkey", "passfile")


def file_complaints(dsn: str) -> list[str]:
    """What is wrong with the files that `dsn` names, on this machine and for this process."""
    query = parameters(dsn)
    named = {name: query[name] for name in _FILES if name in query}
    found = [f"{name}={path}: {wrong}" for name, path in named.items() if (wrong := _file(name, path))]
    return found or list(_contents(named, query))


def _file(name: str, path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            file.read(1)
            status = os.fstat(file.fileno())
    except OSError as exc:
        return exc.strerror or "it cannot be read"
    # As libpq has it, the group may read a key that belongs to root; the driver passes over passwords so.
    shared = name == "sslkey" and status.st_uid == 0
    others = stat.S_IRWXO | (stat.S_IWGRP | stat.S_IXGRP if shared else stat.S_IRWXG)
    if name in _SECRET and status.st_mode & others:
        return "others than its owner may read or write it; right would be chmod 600"
    return None


def _contents(named: Mapping[str, str], query: Mapping[str, str]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        if name in named:
            try:
                context.load_verify_locations(cafile=named[name])
            except (ssl.SSLError, OSError):
                yield f"{name}={named[name]}: it holds no certificates in PEM format"
    if "sslcert" in named:
        password = query.get("sslpassword", "")
        key = named.get("sslkey")
        asked: list[bool] = []

        def give() -> str:
            asked.append(True)
            return password

        try:
            context.load_cert_chain(named["sslcert"], key, password=give)
        except (ssl.SSLError, OSError) as exc:
            where = f"sslkey={key}" if key else "the key in it"
            if getattr(exc, "reason", None) == "KEY_VALUES_MISMATCH":
                yield f"sslcert={named['sslcert']}: {where} is that of another certificate"
            elif asked:
                missing = "sslpassword does not open it" if password else "there is no sslpassword"
                yield f"sslcert={named['sslcert']}: {where} is encrypted, and {missing}"
            else:
                yield f"sslcert={named['sslcert']}: with {where} it is no certificate and key in PEM format"
        else:
            ended = _end_of(named["sslcert"])
            if ended is not None and ssl.cert_time_to_seconds(ended) < time.time():
                yield f"sslcert={named['sslcert']}: the certificate has expired, on {ended}"
    if authorities := context.get_ca_certs():
        ends = [str(one["notAfter"]) for one in authorities]
        latest = max(ends, key=ssl.cert_time_to_seconds)
        if ssl.cert_time_to_seconds(latest) < time.time():
            yield f"sslrootcert={named['sslrootcert']}: what is in it has expired, on {latest}"


def _end_of(path: str) -> str | None:
    """When the first certificate of the file ends; None where Python cannot read that.

    Its only function that reads a certificate which is no authority's is one of its own tests'.
    """
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    return None if decode is None else str(decode(path)["notAfter"])
