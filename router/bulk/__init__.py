"""Loading files into shards: `pgscatter load`.

source   a file as chunks of checked rows         lines, arrays, parquet
embed    vectors for rows that came as text
wire     rows as PostgreSQL's binary COPY
resume   what has been loaded, kept where the rows are
pump     chunks to shards, in parallel
copy     one shard's part of a chunk, without the rows that PostgreSQL refuses
finish   indexes, double ids, replicas
"""
