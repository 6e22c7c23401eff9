"""Writes RLDS datasets: `build.build` of any source, `recorded.write_dataset` of episode files.

plan decides the shards, shards writes them, build directs the workers and finishes the dataset;
publish has the metadata, manifest and rename that both ways share.
"""
