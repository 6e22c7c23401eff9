"""Door 1: robot recordings in, numpy batches out. Knows nothing of JAX or simulators."""
