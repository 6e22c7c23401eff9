"""What the doctor looks at, as functions whose inputs a test can choose.

Beside the doctor rather than in xvla_jax, because it has to start where JAX does not: it imports
nothing that it examines, and what may crash or hang runs in an interpreter of its own.
"""
