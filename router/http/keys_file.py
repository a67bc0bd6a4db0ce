"""The file of API keys: YAML in, `Keys` out, and every fault of it named with its place.

    keys:
      - {name: app, key: "${APP_KEY}", scopes: [read, write]}
      - {name: operator, sha256: "<64 hexadecimal digits>", scopes: [admin]}

No message holds any part of a key.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from router.http.keys import Key, Keys, Scope
from router.http.keys_ownership import UntrustedError, check_ownership
from shard_config.file.environment import Unresolved, substitute

__all__ = ["KeysError", "load", "parse", "restore", "save"]

_MAX_BYTES = 1 << 20
_MAX_KEYS = 1000  # each request is compared with all of them
_FIELDS = {"name", "key", "sha256", "scopes"}
_SCOPES = ("read", "write", "admin")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_HEADER_TEXT = re.compile(r"[!-~]+")


class KeysError(Exception):
    """The file cannot be used; `problems` are for the operator."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Saved(msgspec.Struct):
    keys: list[Key]
    outdated: bool


def load(path: Path, env: Mapping[str, str]) -> Keys:
    """The keys of a file that only root and our account can change.

    Raises:
        KeysError
    """
    try:
        with path.open("rb") as file:
            check_ownership(path, os.fstat(file.fileno()))
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise KeysError([f"{path}: larger than {_MAX_BYTES} bytes"])
        text = data.decode()
    except UntrustedError as exc:
        raise KeysError([f"{path}: {exc}"]) from exc
    except OSError as exc:
        raise KeysError([f"{path}: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise KeysError([f"{path}: not UTF-8 at byte {exc.start}"]) from exc
    return parse(text, env, str(path))


def parse(text: str, env: Mapping[str, str], source: str) -> Keys:
    """
    Raises:
        KeysError
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        # PyYAML's own message would quote the file.
        raise KeysError([f"{source}:{line}: not valid YAML"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise KeysError([f"{source}: not valid YAML: {type(exc).__name__}"]) from None
    reading = _Reading(source, env)
    keys = reading.keys(tree)
    if reading.problems:
        raise KeysError(reading.problems)
    return Keys(keys)


def save(keys: Keys, path: Path) -> None:
    """Put `keys` into a file for `restore`: digests alone, for the own account alone.

    Whoever reads it meanwhile reads the file before, as a whole.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(_Saved(list(keys), keys.outdated)))
    new.replace(path)


def restore(path: Path) -> Keys:
    """The keys that `save` has put there.

    Raises:
        KeysError
    """
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
    except OSError as exc:  # it goes with the supervisor
        raise KeysError([f"{path}: {exc.strerror}"]) from exc
    return Keys(saved.keys, outdated=saved.outdated)


class _Reading:
    """One pass over a file; `problems` grows as it goes."""

    def __init__(self, source: str, env: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._source = source
        self._env = env
        self._names: dict[str, int] = {}
        self._digests: dict[bytes, int] = {}

    def keys(self, tree: object) -> list[Key]:
        entries = tree.get("keys") if isinstance(tree, dict) else None
        if (
            not isinstance(tree, dict)
            or set(tree) != {"keys"}
            or not isinstance(entries, list)
            or not entries
        ):
            self._wrong("", "expected one field, keys: a list of at least one key")
            return []
        if len(entries) > _MAX_KEYS:
            self._wrong("keys", f"{len(entries)} keys exceed {_MAX_KEYS}")
            return []
        found = [self._key(entry, f"keys[{i}]", i) for i, entry in enumerate(entries)]
        return [key for key in found if key is not None]

    def _key(self, entry: object, path: str, i: int) -> Key | None:
        if not isinstance(entry, dict):
            self._wrong(path, "expected an object with name, key or sha256, and scopes")
            return None
        if set(entry) - _FIELDS:
            # Not shown: it may be a key in the wrong place.
            self._wrong(path, "a field other than name, key, sha256 and scopes")
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            self._wrong(f"{path}.name", "expected a non-empty string")
            return None
        if self._names.setdefault(name, i) != i:
            self._wrong(f"{path}.name", f"{name!r} is the name of keys[{self._names[name]}] too")
        digest = self._digest(entry, path)
        scopes = self._scopes(entry.get("scopes"), f"{path}.scopes")
        if digest is None or not scopes:
            return None
        if self._digests.setdefault(digest, i) != i:
            self._wrong(path, f"the same key as keys[{self._digests[digest]}]")
        return Key(name, digest, scopes)

    def _digest(self, entry: dict[Any, Any], path: str) -> bytes | None:
        if ("key" in entry) == ("sha256" in entry):
            self._wrong(path, "expected key or sha256, one of the two")
            return None
        field = "key" if "key" in entry else "sha256"
        value = entry[field]
        if not isinstance(value, str):
            self._wrong(f"{path}.{field}", "expected a string; quote it")
            return None
        try:
            value = substitute(value, self._env)
        except Unresolved as exc:
            self._wrong(f"{path}.{field}", str(exc))
            return None
        if field == "sha256":
            if not _DIGEST.fullmatch(value):
                self._wrong(f"{path}.sha256", "expected 64 hexadecimal digits")
                return None
            return bytes.fromhex(value)
        if not _HEADER_TEXT.fullmatch(value):
            self._wrong(f"{path}.key", "expected printable ASCII without spaces, and not nothing")
            return None
        return hashlib.sha256(value.encode()).digest()

    def _scopes(self, scopes: object, path: str) -> frozenset[Scope]:
        if not isinstance(scopes, list) or not scopes:
            self._wrong(path, f"expected a list of {', '.join(_SCOPES)}")
            return frozenset()
        for i, scope in enumerate(scopes):
            if scope not in _SCOPES:
                self._wrong(
                    f"{path}[{i}]", f"unknown scope {str(scope)[:40]!r}; known are {', '.join(_SCOPES)}"
                )
        return frozenset(cast(Scope, scope) for scope in scopes if scope in _SCOPES)

    def _wrong(self, path: str, message: str) -> None:
        self.problems.append(": ".join(part for part in (self._source, path, message) if part))
