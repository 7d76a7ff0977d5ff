"""Which part of a step takes the time, forward and backward, while nothing is changed in what it computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import Stopwatch, read_clocks

OTHER = "other"


@dataclass(frozen=True)
class Part:
    """A method, or the ``forward`` of a module, under a name."""

    name: str
    owner: Any
    method: str = "forward"


class PartClock:
    """Every moment belongs to one part: the innermost that was entered and not left, or else to ``OTHER``.

    What goes into a part and what comes out of it passes through an identity. Its backward tells when gradients
    arrive at the part and when they leave it. The engine runs nodes in the reverse order of their creation (parameters'
    gradients are added up at once), so between the two it runs the part's own nodes and no others.
    """

    def __init__(self, watch: Stopwatch):
        self._watch, self._inside, self._since = watch, [OTHER], read_clocks()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Also leaves the parts that were entered within and not left: one without differentiable inputs, the first."""
        depth = len(self._inside)
        self._enter(name)
        yield
        self._charge()
        del self._inside[depth:]

    @contextmanager
    def watching(self, parts: Sequence[Part]) -> Iterator[None]:
        """Time each of them wherever it is called."""
        with ExitStack() as patches:
            for part in parts:
                timed = self._timed(part.name, getattr(part.owner, part.method))
                patches.enter_context(mock.patch.object(part.owner, part.method, timed))
            yield
            self._charge()

    def _timed(self, name: str, function: Callable) -> Callable:
        def call(*inputs: Any) -> Any:
            with self.part(f"{name} forward"):
                result = function(*_through(self._leave, inputs))
                return _through(partial(self._enter, f"{name} backward"), result)

        return call

    def _enter(self, name: str) -> None:
        self._charge()
        self._inside.append(name)

    def _leave(self) -> None:
        self._charge()
        self._inside.pop()

    def _charge(self) -> None:
        self._since = self._watch.charge(self._inside[-1], self._since)


class _Crossing(torch.autograd.Function):
    """The identity, whose backward calls ``crossed`` when the gradients of all tensors have come."""

    @staticmethod
    def forward(ctx: Any, crossed: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.crossed = crossed
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.crossed()
        return None, *gradients


def _through(crossed: Callable[[], None], values: Any) -> Any:
    """The same values; what was one tensor stays one."""
    found: dict[int, Tensor] = {}

    def collect(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            found[id(tensor)] = tensor
        return tensor

    _for_tensors(collect, values)
    if not found:
        return values
    passed = dict(zip(found, _Crossing.apply(crossed, *found.values()), strict=True))
    return _for_tensors(lambda tensor: passed.get(id(tensor), tensor), values)


def _for_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applied within tuples, lists and dataclasses."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_for_tensors(function, item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = {each.name: getattr(value, each.name) for each in fields(value)}
        return replace(value, **{name: _for_tensors(function, item) for name, item in items.items()})
    return value
