"""``reach_through``: the gradient that a frozen network would pass on, without a second forward pass."""

import copy

import torch
from torch import nn

from nl3dmm.losses.objective import reach_through, weighted_sum


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5)).double()


def terms_of(output: torch.Tensor, direct: torch.Tensor) -> torch.Tensor:
    return ((output - direct) ** 2).mean(1)


def test_gradient_is_that_of_the_network_with_constant_parameters():
    module, source = network(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    direct = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    frozen = copy.deepcopy(module).requires_grad_(False)
    expected = torch.autograd.grad(terms_of(frozen(source), direct).mean(), (source, direct))

    outputs = module(source)
    held = outputs.detach().requires_grad_()
    term = reach_through(terms_of(held, direct), [held], [outputs], source)
    torch.testing.assert_close(term, terms_of(outputs, direct))
    weighted_sum({"term": term}, {"term": 1.0}).total.backward()
    torch.testing.assert_close((source.grad, direct.grad), expected)
    assert all(parameter.grad is None for parameter in module.parameters())
    for ours, theirs in zip(module.buffers(), frozen.buffers(), strict=True):
        assert ours.equal(theirs)  # statistics have seen one forward pass


def test_outputs_may_be_one_tensor_twice():
    module, source = network(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    outputs = module(source)
    (expected,) = torch.autograd.grad(3 * outputs.sum() / 3, source, retain_graph=True)
    copies = [outputs.detach().requires_grad_() for _ in range(2)]
    reach_through((copies[0] + 2 * copies[1]).sum(1), copies, [outputs, outputs], source).mean().backward()
    torch.testing.assert_close(source.grad, expected)


def test_the_graph_stays_whole_for_other_terms():
    module, source = network(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    outputs = module(source)
    held = outputs.detach().requires_grad_()
    term = reach_through((held**2).sum(1), [held], [outputs], source)
    (term.mean() + outputs.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
