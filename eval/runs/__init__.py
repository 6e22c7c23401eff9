"""Closed-loop evaluations: episodes, their journal and receipt, and comparisons of policies.

Begin with `rollout` (how an episode runs), then `evaluation` (a complete run). `receipt` makes and
reads results.json, `shards` merges receipts, `compare` and `statistics` say what they show,
`golden_frame` checks the simulator, and `latency` measures what a slow policy costs.
"""
