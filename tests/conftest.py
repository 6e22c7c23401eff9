"""Environment of every test, set before jax, TensorFlow or MuJoCo can be imported."""

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.fake_gcs import FakeStorage, fake_gcs
from tests.quick_compile import QUICK_COMPILE

# Eight simulated devices, so that the sharded code is tested as such on any machine. The golden
# gradients alone ask for LLVM's optimisations (tests/xvla_jax/golden.py).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands keep compiled programs in the user's home otherwise; tests of the cache turn it on.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_COMPILE}")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])


@pytest.fixture
def lab(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeStorage]:
    """The objects of the bucket gs://lab, which this process reads and writes."""
    pytest.importorskip("google.cloud.storage", reason="needs the extra gcs")
    from xvla_jax import buckets

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))
    with fake_gcs() as (storage, environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        buckets._client.cache_clear()
        yield storage
        buckets._client.cache_clear()
