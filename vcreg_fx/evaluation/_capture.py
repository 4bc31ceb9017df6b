"""Keep the tensors that pass at a model's sites, with autograd's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from placement_rules import PlacementError, Site, get_leaf


@contextmanager
def captured(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the tensors at sites while the model runs.

    **Arguments:**

    - `model`: the model, or a copy of it.
    - `sites`: planned sites; each at a module's output or input.

    **Returns:** a context that yields ``{site name: [one tensor a call]}``, filled by forward
    calls.

    **Raises:** `PlacementError` for a site in the middle of a forward, which no hook can see.
    """
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    if inside := [site.name for site in sites if site.form == "inside"]:
        raise PlacementError(
            f"{', '.join(inside)} lies in the middle of a module's forward, where its tensor "
            'cannot be captured. Use a rule of module outputs and inputs, such as "blocks".'
        )
    handles = []
    for site in sites:
        module = model.get_submodule(site.path)
        if site.position == "output":
            handles.append(module.register_forward_hook(_keep_output(site, found[site.name])))
        else:
            hook = _keep_input(site, found[site.name])
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep_output(site: Site, tensors: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        tensors.append(_kept(site, get_leaf(output, site.leaf)))

    return hook


def _keep_input(site: Site, tensors: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        source = args if isinstance(site.leaf[0], int) else kwargs
        tensors.append(_kept(site, get_leaf(source, site.leaf)))

    return hook


def _kept(site: Site, tensor: Tensor) -> Tensor:
    """Return the tensor; a copy where the model writes to it further down."""
    return tensor if site.clone is None else tensor.clone()
