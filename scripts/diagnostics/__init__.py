"""The checks of `scripts.doctor`, as functions whose inputs a test can choose.

Beside the doctor rather than in xvla_jax, because it has to start where JAX does not: it imports
no package that it examines; a check that may crash or hang runs in an interpreter of its own.
"""
