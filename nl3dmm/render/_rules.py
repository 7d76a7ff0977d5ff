"""Numbers that every backend on the CPU must share: with other ones the twins would not draw the same picture."""

import torch

DEPTH_MAX = 2**32 - 1
DEPTH_ROUNDING = 0.381966  # 2 - golden ratio: far from all simple fractions, so rounding errors cannot split a tie
LARGEST = torch.finfo(torch.float32).max  # larger numbers in float64, whose products overflow, count as not finite
EDGE_ON = 1e-76  # a smaller sum of weights divides nothing; squared smallest number of float32
COVERAGE_TOLERANCE = 1 / 16  # px that a crossing may lie outside of its pair: the grid on which coverage is decided

# Added to divisors in float32, so that the gradients of triangles seen edge-on and of short edges stay finite.
WEIGHT_STABILISER = {torch.float32: 1e-6, torch.float64: 0.0}
CROSSING_STABILISER = {torch.float32: 1e-3, torch.float64: 0.0}  # px
