"""The way of a sample: trajectories of opened sources -> batches of numpy arrays.

In the order of the data: windows (samples of an episode), stream (samples of a source), batches
(one batch), pipeline (the global stream); beside them position (where a run continues) and memory
(its bytes on the host).

Others use `pipeline` (batches, one_pass, recorded_frames), `position.merge_positions`,
`memory.host_bytes` with `stream.StreamShape`, and `windows` to look at samples of one episode.
"""
