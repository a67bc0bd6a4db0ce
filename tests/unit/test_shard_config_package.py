"""What `shard_config` offers to everyone else."""

from __future__ import annotations

import shard_config


def test_the_package_exports_what_it_says() -> None:
    assert shard_config.__all__ == [
        "Collection",
        "MapError",
        "NoPlaceError",
        "ShardMap",
        "load",
        "locate",
        "locate_many",
        "parse",
        "to_json",
    ]
    assert all(getattr(shard_config, name).__doc__ for name in shard_config.__all__)
