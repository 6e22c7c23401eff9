"""Training: from batches to parameters, checkpoints and metrics.

`step` and `loop` are the two pages to read first: one train step, and the loop around it.

For scripts: `loop.run_loop` with its parts, `step.make_train_step`, `state` (`Recipe`,
`init_state`, `abstract_state`, `place_base`), `optimizer.OptimizerConfig`, `validation`,
`checkpointer`, `resume`, `provenance`, `telemetry`, `multihost` (`start`, `Processes`),
`signals.StopSignal`, `workdir_lock.WorkdirLock` and `cpu_memory`. `groups` has the rows of what
trains.
"""
