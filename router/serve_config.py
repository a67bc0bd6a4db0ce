"""How `pgscatter serve` was configured, and how that reaches its worker processes.

Flags win over environment variables, which win over defaults. A worker is a fresh process that imports
the application by name, so the whole configuration travels in one variable of its environment.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import msgspec

from router.settings import Setting, Settings, described

__all__ = ["ServeConfig", "add_setting_flags", "export", "from_env", "read_settings", "read_values"]

_VARIABLE = "PGSCATTER_SERVE_CONFIG"
# A link of Markdown, whose text is all that a terminal can use.
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


class ServeConfig(msgspec.Struct, frozen=True):
    """What a worker needs to know.

    Attributes:
        shared_path: the file of all workers, if there are several.
        map_copy: the map's text as it was when the command started, if there are several workers: one
            that replaces another must serve what the others serve, whatever became of the file.
        keys_copy: the same of the keys, as `router.http.keys_file.save` writes them; None if all is open.
        replaces: the worker takes the place of one that served. What would be a reason not to start is none
            then: the others go on, and an end of this one would end them all.
    """

    map_path: str
    redis_url: str | None = None
    settings: Settings = Settings()
    log_level: str = "info"
    workers: int = 1
    shared_path: str | None = None
    map_copy: str | None = None
    keys_copy: str | None = None
    replaces: bool = False


def export(config: ServeConfig, env: MutableMapping[str, str]) -> None:
    """Put `config` where `from_env` of a child process finds it."""
    env[_VARIABLE] = msgspec.json.encode(config).decode()


def from_env(env: Mapping[str, str]) -> ServeConfig:
    """
    Raises:
        RuntimeError: the process was not started by `pgscatter serve`.
    """
    try:
        return msgspec.json.decode(env[_VARIABLE], type=ServeConfig)
    except KeyError as exc:
        raise RuntimeError(f"{_VARIABLE} is not set; start the application with pgscatter serve") from exc


def add_setting_flags(parser: argparse.ArgumentParser, settings: Sequence[Setting] = described()) -> None:
    """A flag per setting."""
    group = parser.add_argument_group(
        "limits",
        "each holds per worker process if its description says nothing else, and is an environment "
        f"variable as well, such as {settings[0].variable}",
    )
    for setting in settings:
        text = _LINK.sub(r"\1", setting.description).replace("%", "%%")
        default = "none" if setting.default == "" else setting.default
        group.add_argument(setting.flag, metavar=setting.metavar, help=f"{text} (default {default})")


def read_settings(args: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """The settings that flags and environment say.

    Raises:
        ValueError: naming the flag or variable, and what it takes.
    """
    return Settings(**read_values(args, env, described()))


def read_values(
    args: argparse.Namespace, env: Mapping[str, str], settings: Sequence[Setting]
) -> dict[str, Any]:
    """The values of those `settings` that flags or environment say.

    Raises:
        ValueError: naming the flag or variable, and what it takes.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        text, source = getattr(args, setting.name), setting.flag
        if text is None:
            text, source = env.get(setting.variable), setting.variable
        if text is not None:
            try:
                values[setting.name] = setting.parse(text)
            except ValueError as exc:
                raise ValueError(f"{source}: {exc}") from exc
    return values
