"""Environment of every test, set before jax, TensorFlow or MuJoCo can be imported."""

import os

# Eight simulated devices, so that the sharded code is tested as such on any machine. Programs run
# for milliseconds here, so LLVM need not optimise them: that more than halves the time to compile.
# The golden gradients alone ask for more (tests/xvla_jax/golden.py).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
