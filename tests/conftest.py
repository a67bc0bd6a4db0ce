"""The real thing, once per session: four shards with a replica each, and Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four shards with one replica each, shared by tests that leave every node running."""
    with Cluster.temporary(shards=4, replicas=1) as running:
        yield running
