"""The weighted sum of loss terms."""

import pytest
import torch

from nl3dmm.errors import ConfigError
from nl3dmm.losses.objective import weighted_sum


def test_total_is_the_weighted_sum_of_batch_means():
    terms = {"shape": torch.tensor([1.0, 3.0]), "light": torch.tensor([0.5, 0.5])}
    objective = weighted_sum(terms, {"shape": 2.0, "light": 4.0, "unused": 9.0})
    assert float(objective.total) == 6.0
    assert {name: float(value) for name, value in objective.terms.items()} == {"shape": 2.0, "light": 0.5}


def test_terms_are_detached_and_the_total_is_not():
    term = torch.ones(2, requires_grad=True)
    objective = weighted_sum({"shape": term}, {"shape": 3.0})
    assert not objective.terms["shape"].requires_grad
    objective.total.backward()
    assert term.grad.tolist() == [1.5, 1.5]


def test_weight_zero_reports_but_cannot_spread_a_nan():
    term = torch.tensor([float("nan")], requires_grad=True)
    good = torch.ones(1, requires_grad=True)
    objective = weighted_sum({"bad": term, "good": good}, {"bad": 0.0, "good": 1.0})
    assert objective.terms["bad"].isnan()
    assert float(objective.total.detach()) == 1.0
    objective.total.backward()
    assert term.grad is None
    assert good.grad.tolist() == [1.0]


def test_no_terms_are_a_zero_tensor():
    assert float(weighted_sum({}, {}).total) == 0.0


def test_a_term_without_weight_is_an_error():
    with pytest.raises(ConfigError, match=r"weights: got none for \['light'\]; expected one per loss term"):
        weighted_sum({"light": torch.ones(1)}, {"shape": 1.0})
