"""XLA flags of the tests: programs run for milliseconds here, so their speed is worth no compiling.

Without LLVM's optimisations, and with the emitters that XLA had before its present ones for fused
loops, the train step of the test size compiles in a third of the time. Nothing is imported here,
since it is needed before JAX is.
"""

QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
