"""Loading files into shards: `pgscatter load`.

source   a file as chunks of checked rows         lines, arrays, parquet
wire     rows as PostgreSQL's binary COPY
resume   what has been loaded, kept where the rows are
pump     chunks to shards, in parallel
finish   indexes, double ids, replicas
"""
