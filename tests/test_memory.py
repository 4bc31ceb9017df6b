"""What autograd keeps for backward: the activation itself, and nothing else of its size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vcreg_fx
from tests.models import SMALL, task_loss


def saved_storages(model: nn.Module, x: torch.Tensor) -> dict[int, int]:
    """Return the distinct storages that one forward pass saves: address → bytes."""
    found: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task_loss(model(x))
    loss.backward()
    return found


@pytest.mark.parametrize("name", SMALL)
def test_no_activation_but_h_is_stored(name: str) -> None:
    build, shape = SMALL[name]
    x = torch.randn(shape)
    plain = build()
    inserted = vcreg_fx.insert(copy.deepcopy(plain), "blocks", example_inputs=(x,))
    sites = vcreg_fx.sites(inserted)
    outputs: dict[int, int] = {}
    kept = []

    def note(_: nn.Module, args: object, output: torch.Tensor) -> None:
        kept.append(output)  # so that no address is used twice
        outputs[output.untyped_storage().data_ptr()] = output.untyped_storage().nbytes()

    for site in sites:
        plain.get_submodule(site.path).register_forward_hook(note)
    before, after = saved_storages(plain, x), saved_storages(inserted, x)
    h_that_the_network_drops = sum(size for at, size in outputs.items() if at not in before)
    means_and_coefficients = sum(4 * site.channels + 2 * 8 for site in sites)
    extra = sum(after.values()) - sum(before.values())
    assert 0 < extra <= means_and_coefficients + h_that_the_network_drops


def test_a_site_adds_only_its_mean_where_the_network_keeps_the_activation() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x)

    plain = nn.Sequential(*(Block() for _ in range(4)), nn.Flatten(), nn.Linear(8 * 16, 3))
    x = torch.randn(4, 8, 4, 4)
    inserted = vcreg_fx.insert(copy.deepcopy(plain), "blocks", example_inputs=(x,))
    before, after = saved_storages(plain, x), saved_storages(inserted, x)
    scalars_and_means = 8 * 4 + 2 * 8  # the mean in float32, α and β in float64
    assert sum(after.values()) - sum(before.values()) <= 4 * scalars_and_means


def test_loss_mode_keeps_the_matrix_and_the_activation() -> None:
    h = torch.randn(256, 8, requires_grad=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    plain = saved_storages(model, h)
    vcreg_fx.insert(model, "head", mode="loss", example_inputs=(h.detach(),))
    after = saved_storages(model, h)
    assert sum(after.values()) - sum(plain.values()) <= 4 * (8 * 8 + 2 * 8) + 2 * 8
