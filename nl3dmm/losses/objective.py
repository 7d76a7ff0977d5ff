"""The objective: a named weighted sum of loss terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.errors import ConfigError
from nl3dmm.types import Latents, TensorFields, UVMaps


@dataclass(frozen=True)
class Estimate(TensorFields):
    """What the networks made of a batch, detached: for the checks of their health."""

    latents: Latents
    maps: UVMaps
    shading: Float[Tensor, "batch vertices 3"] | None = None  # of the proxies, where they were rendered


@dataclass(frozen=True)
class Objective:
    """Total to minimise and its unweighted terms (batch means, detached) for the logs."""

    total: Tensor
    terms: dict[str, Tensor]
    estimate: Estimate | None = None


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Objective:
    """Mean each per-sample term over the batch, weight and add; a term without a weight is an error.

    Terms of weight 0 are reported but add nothing, so that their gradients cannot spread a NaN.
    """
    missing = sorted(set(terms) - set(weights))
    if missing:
        raise ConfigError(f"weights: got none for {missing}; expected one per loss term. Add them to the loss config.")
    means = {name: term.mean() for name, term in terms.items()}
    total = sum((weights[name] * mean for name, mean in means.items() if weights[name] != 0), torch.zeros(()))
    return Objective(torch.as_tensor(total), {name: mean.detach() for name, mean in means.items()})


def reach_through(
    term: Float[Tensor, " batch"],
    copies: Sequence[Tensor],
    outputs: Sequence[Tensor],
    source: Float[Tensor, "batch features"],
) -> Float[Tensor, " batch"]:
    """The same values; the gradient of their mean also reaches ``source``, as if the network behind it were constant.

    ``term`` was computed from ``copies``: detached copies, which ask for a gradient, of the ``outputs`` that a network
    made of ``source``. It costs one backward pass through that network and no second forward pass; the network's
    parameters get nothing.
    """
    pulls = torch.autograd.grad(term.sum(), copies, retain_graph=True)
    (pull,) = torch.autograd.grad(outputs, source, pulls, retain_graph=True)
    handle = (source * pull).sum(1)
    return term + handle - handle.detach()
