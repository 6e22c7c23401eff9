"""Any readable source -> an RLDS dataset of standard trajectories; `data.writing.build.build`.

plan.py decides which episodes go into which shard, shards.py writes one, crew.py has several
written at once, run.py puts it together. The dataset is read back by data/readers/built.py.
"""
