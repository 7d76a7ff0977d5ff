"""Which texels a coordinate reads."""

from typing import no_type_check

import numpy as np

from nl3dmm.render._jit import kernel

CLAMP, WRAP, ZERO = 0, 1, 2
BOUNDARY = {"clamp": CLAMP, "wrap": WRAP, "zero": ZERO}


@kernel
@no_type_check
def taps(coordinate, size, linear, boundary):
    """Two texel indices along one axis, their weights, and the slopes of the weights.

    A texel that does not exist (boundary ``zero``) is another texel with weight and slope 0.
    """
    position = np.float64(coordinate)
    if boundary == WRAP:
        position -= np.floor(position)
    position = position * size - (0.5 if linear else 0.0)
    slope = 1.0 * size if linear else 0.0
    low, high = (0.0, size - 1.0) if boundary == CLAMP else (-1.0, 1.0 * size)
    if position < low or position > high:
        position, slope = min(max(position, low), high), 0.0
    base = np.floor(position)
    first = np.int64(base)
    second = first + 1 if linear else first
    second_weight = position - base if linear else 1.0
    first_weight, first_slope, second_slope = 1.0 - second_weight, -slope, slope
    if boundary == ZERO:
        if first < 0 or first >= size:
            first, first_weight, first_slope = 0, 0.0, 0.0
        if second < 0 or second >= size:
            second, second_weight, second_slope = 0, 0.0, 0.0
    else:
        if first < 0:
            first += size
        if first >= size:
            first -= size
        if second >= size:
            second = 0 if boundary == WRAP else size - 1
    return first, second, first_weight, second_weight, first_slope, second_slope


@kernel
@no_type_check
def inner_taps(coordinate, size):
    """``taps`` of linear filtering with boundary ``clamp``, in half the time: the hot path of training."""
    wanted = np.float64(coordinate) * size - 0.5
    position = min(max(wanted, 0.0), size - 1.0)
    first = np.int64(position)
    second_weight = position - first
    return first, min(first + 1, size - 1), 1.0 - second_weight, second_weight, position == wanted


@kernel
@no_type_check
def is_finite(u, v):
    return np.isfinite(u) and np.isfinite(v)
