"""The bounds of a shard map, in one place for the reader, the JSON Schema and the documentation.

Those of the index and the vector types are pgvector's own (HNSW_MIN_M and its neighbours in
src/hnsw.h, VECTOR_MAX_DIM in src/vector.h); beyond them the server would refuse the statement.
"""

from __future__ import annotations

import re

from shard_config.model import Quantization, VectorType

FILE_BYTES = 4 * 1024 * 1024
DEPTH = 32  # levels of nesting; a map needs 7
ELEMENTS = 1_000_000  # values of a document after aliases are followed

VERSION = (0, 2**63 - 1)
SHARDS = 4096
BUCKETS = (1, 65536)

DIMENSIONS = (1, 16_000)
M = (2, 100)
EF_CONSTRUCTION = (4, 1000)
EF_SEARCH = (1, 1000)
OVERFETCH = (1.0, 100.0)
MAX_K = (1, 10_000)
TARGET_RECALL = (0.5, 0.9999)  # a recall of 1 is what exact searches are for
SHARE = (0.0, 1.0)
TUNE_QUERIES = (2, 100_000)
TUNE_FILTERS = (0, 1000)
TIMEOUT = (0.001, 3600.0)  # seconds
METADATA_INDEXES = 64  # of one collection; each is written by every upsert
TTL = (0.0, 7 * 86_400.0)  # seconds
EMBEDDING_BATCH = (1, 2048)  # texts of a request; OpenAI takes no more
SERVICES = 256  # of a kind, in one map
MODEL_NAME = r"[^\u0000-\u001f\u007f]{1,256}"
API_KEY = r"[!-~]{1,4096}"  # a header holds it
PREFIX = r"[^\u0000]{0,4096}"
TEMPLATE_LENGTH = 4096
TEMPLATE_FIELDS = 64
FULLTEXT_COLUMNS = 4  # PostgreSQL has four weights
LANGUAGES = 64  # that a column may name

NAME = r"[a-z][a-z0-9_-]{0,62}"  # of shards, nodes and collections
ZONE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
PATRONI = rf"https?://(?:[A-Za-z0-9._-]{{1,253}}|\[[0-9a-fA-F:.]{{2,45}}\])(?::{_PORT})?/?"
SERVICE_URL = (
    rf"https?://(?:[A-Za-z0-9._-]{{1,253}}|\[[0-9a-fA-F:.]{{2,45}}\])(?::{_PORT})?"
    r"(?:/[A-Za-z0-9._~%!$&'()*+,;=:-]{0,255}){0,16}"
)
API_VERSION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
IDENTIFIER = r"[a-z_][a-z0-9_]{0,62}"  # what PostgreSQL takes without quotes
BUCKET_RUN = r"([0-9]{1,5})(?:-([0-9]{1,5}))?"
DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h)"

# What a search answers under these names would hide a column of the same name.
TAKEN_NAMES = ("id", "vector", "content", "metadata", "distance", "shard")


def is_name(text: str) -> bool:
    """Whether `text` can name a shard, a node or a collection."""
    return re.fullmatch(NAME, text) is not None


def indexable_dimensions(type_: VectorType, quantization: Quantization) -> int:
    """The most dimensions that an HNSW index can have over what it stores of each vector."""
    if quantization is Quantization.BINARY:
        return 64_000
    if quantization is Quantization.HALFVEC or type_ is VectorType.HALFVEC:
        return 4_000
    return 2_000
