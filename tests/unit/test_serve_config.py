from __future__ import annotations

import argparse

import msgspec
import pytest

from router.serve_config import ServeConfig, add_setting_flags, export, from_env, read_settings
from router.settings import Settings, described


def settings(*argv: str, **env: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    return read_settings(parser.parse_args(argv), env)


def test_every_setting_has_a_flag_and_its_help() -> None:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    actions = {action.dest: action for action in parser._actions}
    for setting in described():
        assert setting.flag in actions[setting.name].option_strings
        assert len(setting.description) > 10
    assert "](" not in parser.format_help()


def test_every_default_is_a_value_that_its_setting_takes() -> None:
    assert msgspec.convert(msgspec.to_builtins(Settings()), Settings) == Settings()


def test_flags_win_over_the_environment_and_that_over_defaults() -> None:
    assert settings() == Settings()
    found = settings("--max-batch", "5", PGSCATTER_MAX_BATCH="6", PGSCATTER_L2_TIMEOUT="0.5")
    assert (found.max_batch, found.l2_timeout) == (5, 0.5)
    assert settings("--l1-bytes=0").l1_bytes == 0


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        (["--max-batch", "0"], {}, "--max-batch: expected a whole number above 0, got '0'"),
        (["--max-batch", "1.5"], {}, "--max-batch: expected a whole number above 0, got '1.5'"),
        (["--node-queue", "-1"], {}, "--node-queue: expected a whole number of at least 0, got '-1'"),
        (["--max-timeout", "nan"], {}, "--max-timeout: expected a number of seconds above 0, got 'nan'"),
        (["--max-timeout", "inf"], {}, "--max-timeout: expected a number of seconds above 0, got 'inf'"),
        (
            ["--recall-sample-rate", "1.5"],
            {},
            "--recall-sample-rate: expected a share of at least 0 and at most 1, got '1.5'",
        ),
        (["--hedge-budget", "-0.1"], {}, "--hedge-budget: expected a share of at least 0 and at most 1"),
        (["--lag-policy", "old"], {}, "--lag-policy: expected one of primary, stale, error, got 'old'"),
        (["--cors-origins", "example.com"], {}, "--cors-origins: expected origins such as https://"),
        (["--recall-budget", "0"], {}, "--recall-budget: expected a rate above 0, got '0'"),
        ([], {"PGSCATTER_L2_PAUSE": "x"}, "PGSCATTER_L2_PAUSE: expected a number of seconds of at least 0"),
    ],
)
def test_a_bad_value_is_named_by_where_it_stands(argv: list[str], env: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings(*argv, **env)
    assert str(caught.value).startswith(message)


def test_a_worker_reads_what_its_parent_exported() -> None:
    config = ServeConfig(
        "/map.yaml", "redis://:secret@h/0", Settings(max_batch=7), "debug", 3, "/s", "/m", "/k"
    )
    env: dict[str, str] = {}
    export(config, env)
    assert from_env(env) == config
    assert msgspec.structs.astuple(from_env(env)) == msgspec.structs.astuple(config)
    with pytest.raises(RuntimeError, match="pgscatter serve"):
        from_env({})
