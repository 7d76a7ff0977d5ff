"""Tensors as the arrays that kernels read and write."""

import numpy as np
import torch
from torch import Tensor


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def repeat(tensor: Tensor, batch: int) -> Tensor:
    """Repeat a shared tensor along the batch axis without copying it."""
    return tensor.expand(batch, *tensor.shape[1:])


def summed(grad: Tensor, batch: int) -> Tensor:
    """Sum the gradients of a shared tensor; numpy adds in the same order with any number of threads."""
    return grad if len(grad) == batch else torch.from_numpy(grad.numpy().sum(0, keepdims=True))
