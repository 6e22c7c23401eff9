"""Door 2, observation -> actions: benchmarks, rollouts, reports; numpy only, Python 3.8 syntax."""
