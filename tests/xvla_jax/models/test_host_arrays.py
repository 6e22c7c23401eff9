"""Arrays that JAX's CPU backend takes over, and how weights get there."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest

from xvla_jax.models.host_arrays import ALIGNMENT, aligned_empty, copy
from xvla_jax.models.inference import inference_params


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.bool_])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7, 3), (1024, 65)])
def test_an_aligned_array_has_its_shape_and_type(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert not array.size or array.ctypes.data % ALIGNMENT == 0
    array[...] = 1
    assert (array == 1).all()


def test_a_device_of_the_cpu_keeps_it_without_a_copy():
    array = aligned_empty((64, 64), np.float32)
    array[...] = 2
    placed = jax.device_put(array, jax.devices("cpu")[0])
    assert placed.unsafe_buffer_pointer() == array.ctypes.data


@pytest.mark.parametrize("shape", [(3,), (1, 40), (40, 33), (2, 3, 4)])
def test_a_copy_has_the_values_of_a_transposed_array(shape):
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).T
    target = aligned_empty(value.shape, ml_dtypes.bfloat16)
    copy(target, value)
    np.testing.assert_array_equal(target, value.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_transposed_weight_is_placed_from_an_aligned_array(dtype):
    weight = np.arange(40 * 33, dtype=np.float32).reshape(40, 33)
    placed = []
    params = {"proj": {"kernel": weight.T, "bias": weight[0]}}
    out = inference_params(params, dtype, place=lambda leaf: placed.append(leaf) or leaf)
    np.testing.assert_array_equal(out["proj"]["kernel"], weight.T.astype(dtype))
    [kernel] = [leaf for leaf in placed if leaf.ndim == 2]
    assert kernel.flags.c_contiguous
    assert kernel.ctypes.data % ALIGNMENT == 0
