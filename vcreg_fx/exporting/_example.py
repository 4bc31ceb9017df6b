"""An example call of a model, at any batch size, and what was exported held against the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import ExampleInputsError, candidate_inputs
from placement_rules._torch import tree_leaves, tree_map

from .._errors import ExportError
from .._shared.keeping import keeping_modes

_TOLERANCE = 1e-4  # of the largest value; other kernels round in another way
_HALF_TOLERANCE = 2e-2


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
    calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]
    if example_inputs is None and example_kwargs is None:
        calls = ((found.args, found.kwargs) for found in candidate_inputs(model))
    else:
        args = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs or ()
        calls = [(tuple(args), dict(example_kwargs or {}))]
    failures = []
    for args, kwargs in calls:
        sizes = [tensor.shape[0] for tensor in tensors_in((args, kwargs)) if tensor.ndim]
        if not sizes:
            raise ExampleInputsError("The example holds no tensor with a batch axis.")
        # An axis of size one would be taken for one that never changes.
        example = Example(args, kwargs, sizes[0]).resized(max(2, sizes[0]))
        try:
            with keeping_modes(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model.eval()
                model(*example.args, **example.kwargs)
        except Exception as error:
            failures.append(error)
            continue
        return example
    if not failures:
        raise ExampleInputsError(
            f"No input can be worked out from {type(model).__name__}. Pass "
            "example_inputs=(tensor, …)."
        )
    first = failures[0]
    raise ExampleInputsError(
        f"The forward pass of {type(model).__name__} failed on the example: "
        f"{type(first).__name__}: {first}. Pass example_inputs=(tensor, …), and "
        "example_kwargs={…} if the forward needs them."
    ) from first


def check_outputs(
    model: nn.Module,
    run: Callable[[Example], Any],
    example: Example,
    sizes: Sequence[int],
    what: str,
) -> None:
    """Compare outputs in eval mode on random inputs; `run` calls what was exported.

    **Raises:** `ExportError` that says by how much they differ.
    """
    with keeping_modes(model), torch.no_grad():
        model.eval()
        for size in sizes:
            call = example.resized(size)
            expected = tensors_in(model(*call.args, **call.kwargs))
            found = tensors_in(run(call))
            _compare(found, expected, f"outputs of {what} at batch size {size}")


def check_gradients(
    model: nn.Module, exported: nn.Module, example: Example, sizes: Sequence[int]
) -> None:
    """Compare outputs and gradients of one training step each.

    **Raises:** `ExportError` that says by how much they differ.
    """
    for size in sizes:
        call = example.resized(size)
        results = []
        for candidate in (copy.deepcopy(model).train(), exported):
            candidate.zero_grad()
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.manual_seed(0)
                outputs = tensors_in(candidate(*call.args, **call.kwargs))
                losses = [_weighted(tensor) for tensor in outputs if tensor.requires_grad]
                if losses:  # not every parameter may be frozen
                    torch.stack(losses).sum().backward()
            grads = {k: p.grad for k, p in candidate.named_parameters() if p.grad is not None}
            results.append((outputs, grads))
        (expected, expected_grads), (found, found_grads) = results
        where = f"what was exported at batch size {size}"
        _compare(found, expected, f"outputs of {where}")
        if found_grads.keys() != expected_grads.keys():
            differing = sorted(found_grads.keys() ^ expected_grads.keys())
            raise ExportError(f"In {where} other parameters have a gradient: {differing}.")
        _compare(
            [found_grads[name] for name in expected_grads],
            list(expected_grads.values()),
            f"gradients of {where}",
        )


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors of a structured output, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _weighted(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return (output * weights.view_as(output)).sum()


def _compare(found: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    if len(found) != len(expected):
        raise ExportError(f"The {what} are {len(found)} tensors, the model's {len(expected)}.")
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(
                f"The {what} have shape {tuple(ours.shape)}, the model's {tuple(theirs.shape)}."
            )
        half = theirs.dtype in {torch.float16, torch.bfloat16}
        one, other = ours.detach().double().cpu(), theirs.detach().double().cpu()
        largest = float(other.abs().max()) if other.numel() else 0.0
        difference = float((one - other).abs().max()) if other.numel() else 0.0
        # Written so that NaN on one side only is a difference, too.
        if not torch.equal(one.isnan(), other.isnan()) or difference > max(largest, 1e-6) * (
            _HALF_TOLERANCE if half else _TOLERANCE
        ):
            raise ExportError(
                f"The {what} differ from the model's by {difference:.3g}, where the largest value "
                f"is {largest:.3g}. The export has been written, but should not be trusted; "
                "check=False keeps it as it is."
            )
