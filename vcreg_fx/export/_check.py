"""Hold what was exported against the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules._torch import tree_leaves

from ._errors import ExportError
from ._example import Example
from ._modes import keeping_modes

_TOLERANCE = 1e-4  # of the largest value; other kernels round in another way
_HALF_TOLERANCE = 2e-2


def check_outputs(
    model: nn.Module,
    run: Callable[[Example], Any],
    example: Example,
    sizes: Sequence[int],
    what: str,
) -> None:
    """Compare outputs in eval mode on random inputs.

    **Arguments:**

    - `run`: calls what was exported.
    - `sizes`: the batch sizes.
    - `what`: what was exported, for the message.

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
