"""Closed-form building blocks of the embedded face: bumps, steps, joins and smooth profiles (NumPy, millimetres)."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Array = Float[ndarray, "..."]
Number = float | int


def bump(
    x: Array, y: Array, center: tuple[Array | Number, Array | Number], sigma: tuple[Number, Number], power: float = 2.0
) -> Array:
    """``exp(-(|dx/sx|^p + |dy/sy|^p) / 2)``: a Gaussian hill, flatter on top for ``power`` > 2."""
    across, along = np.abs((x - center[0]) / sigma[0]), np.abs((y - center[1]) / sigma[1])
    return np.exp(-0.5 * (across**power + along**power))


def bumps(
    x: Array, y: Array, center: tuple[Array | Number, Array | Number], sigma: tuple[Number, Number], power: float = 2.0
) -> Array:
    """A hill and its mirror image in x = 0; their sum has no crease on the midline, a hill of ``|x|`` has."""
    return bump(x, y, center, sigma, power) + bump(-x, y, center, sigma, power)


def ridge(distance: Array, sigma: Number) -> Array:
    """``exp(-(d / s)^2 / 2)``: a ridge along the curve from which ``distance`` is measured."""
    return np.exp(-0.5 * (distance / sigma) ** 2)


def step(distance: Array, width: Number) -> Array:
    """Logistic step from 0 (far negative) to 1."""
    return 1 / (1 + np.exp(-np.clip(distance / width, -40, 40)))


def smooth_maximum(first: Array, second: Array, radius: Number) -> Array:
    """Maximum of two height fields, joined by a fillet about ``radius`` wide; exact far from the join."""
    return np.logaddexp(first / radius, second / radius) * radius


def profile(position: Array, knots: Array, values: Array, sigma: float) -> Array:
    """Piecewise-linear ``values`` at ascending ``knots``, extended linearly and smoothed by a Gaussian.

    The exact convolution of a polyline: each change of slope contributes a softened ramp, so no knot shows as a band.
    """
    slopes = np.diff(values) / np.diff(knots)
    result = values[0] + slopes[0] * (position - knots[0])
    for knot, change in zip(knots[1:-1], np.diff(slopes), strict=True):
        offset = (position - knot) / sigma
        result = result + change * sigma * (offset * _normal_cdf(offset) + _normal_pdf(offset))
    return result


def monotone_cubic(position: Array, knots: Array, values: Array) -> Array:
    """Monotone C1 interpolation of monotone data (Fritsch and Carlson 1980), constant outside the knots."""
    widths, slopes = np.diff(knots), np.diff(values) / np.diff(knots)
    weights = (2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1])
    inner = (weights[0] + weights[1]) / (weights[0] / slopes[:-1] + weights[1] / slopes[1:])  # slopes of one sign
    tangents = np.concatenate([slopes[:1], inner, slopes[-1:]])
    position = np.clip(position, knots[0], knots[-1])
    index = np.clip(np.searchsorted(knots, position, side="right") - 1, 0, len(slopes) - 1)
    width, t = widths[index], (position - knots[index]) / widths[index]
    start = values[index] * (1 + 2 * t) * (1 - t) ** 2 + tangents[index] * width * t * (1 - t) ** 2
    return start + values[index + 1] * t**2 * (3 - 2 * t) + tangents[index + 1] * width * t**2 * (t - 1)


def _normal_pdf(x: Array) -> Array:
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _normal_cdf(x: Array) -> Array:
    """Abramowitz and Stegun 26.2.17, absolute error < 7.5e-8: NumPy has no erf."""
    k = 1 / (1 + 0.2316419 * np.abs(x))
    tail = _normal_pdf(x) * k * np.polyval([1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530], k)
    return np.where(x > 0, 1 - tail, tail)
