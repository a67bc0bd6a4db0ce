"""A whole cluster on this machine: PostgreSQL primaries with streaming replicas, and Redis.

The demo, the tests and the benches run on it; `pgscatter cluster` is its command line.
"""

from deploy.local.cluster import MOST_REPLICAS, MOST_SHARDS, Cluster, CollectionsError
from deploy.local.state import ClusterError, NodeInfo

__all__ = ["MOST_REPLICAS", "MOST_SHARDS", "Cluster", "ClusterError", "CollectionsError", "NodeInfo"]
