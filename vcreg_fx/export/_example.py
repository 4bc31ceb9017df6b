"""An example call of a model, at any batch size."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import ExampleInputsError, candidate_inputs
from placement_rules._torch import tree_leaves, tree_map

from ._modes import keeping_modes


@dataclass(frozen=True)
class Example:
    """Arguments of one forward call.

    **Attributes:**

    - `args`, `kwargs`: as the model is called.
    - `batch`: the size of their first axis; every tensor with that first size is batched.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int

    def resized(self, batch: int, seed: int = 0) -> Example:
        """Return a call with another batch size: random floats, and the other tensors repeated."""
        generator = torch.Generator().manual_seed(seed)

        def resize(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = (batch, *value.shape[1:]) if self._is_batched(value) else value.shape
            if value.is_floating_point():
                drawn = torch.randn(shape, generator=generator)
                return drawn.to(device=value.device, dtype=value.dtype)
            if not self._is_batched(value):
                return value
            return value[torch.arange(batch, device=value.device) % self.batch].clone()

        args, kwargs = tree_map(resize, (self.args, self.kwargs))
        return Example(args, kwargs, batch)

    def dynamic_shapes(self, model: nn.Module) -> dict[str, Any]:
        """Return what tells `torch.export` that the batch size is free."""
        batch = torch.export.Dim("batch", min=1)
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs)

        def free(value: Any) -> Any:
            return {0: batch} if isinstance(value, Tensor) and self._is_batched(value) else None

        return {name: tree_map(free, value) for name, value in bound.arguments.items()}

    def _is_batched(self, value: Tensor) -> bool:
        return value.ndim > 0 and value.shape[0] == self.batch


def find_example(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
) -> Example:
    """Return an example call with a batch of two or more, given or worked out from the model.

    **Raises:** `ExampleInputsError` if there is none that the model accepts.
    """
    failures = []
    for args, kwargs in _calls(model, example_inputs, example_kwargs):
        sizes = [t.shape[0] for t in tree_leaves((args, kwargs)) if _is_tensor(t) and t.ndim]
        if not sizes:
            raise ExampleInputsError("The example holds no tensor with a batch axis.")
        # An axis of size one would be taken for one that never changes.
        example = Example(args, kwargs, sizes[0]).resized(max(2, sizes[0]))
        try:
            with keeping_modes(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model.eval()
                model(*example.args, **example.kwargs)
        except Exception as error:
            failures.append((f"{type(error).__name__}: {error}", error))
            continue
        return example
    if not failures:
        raise ExampleInputsError(
            f"No input can be worked out from {type(model).__name__}. Pass "
            "example_inputs=(tensor, …)."
        )
    raise ExampleInputsError(
        f"The forward pass of {type(model).__name__} failed on the example: {failures[0][0]}. Pass "
        "example_inputs=(tensor, …), and example_kwargs={…} if the forward needs them."
    ) from failures[0][1]


def _calls(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    if example_inputs is None and example_kwargs is None:
        yield from ((found.args, found.kwargs) for found in candidate_inputs(model))
        return
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs or ()
    yield tuple(args), dict(example_kwargs or {})


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
