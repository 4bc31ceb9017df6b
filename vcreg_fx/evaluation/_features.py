"""Features: what a model hands to its classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from placement_rules import PlacementError

from ..functional import flatten_samples
from ..surgery import plan
from ._capture import captured


def head_features(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the input of the model's classifier for each image, from the frozen model.

    **Arguments:**

    - `model`: a classifier with one head; it is left in the mode it was in.
    - `images`: shape (n, channels, height, width).
    - `batch_size`: images in one forward pass.

    **Returns:** shape (n, d).

    **Raises:** `PlacementError` if the model has no head, several, or one that does not see one
    vector an image.
    """
    sites = plan(model, "head", example_inputs=(images[:2],)).sites
    if len(sites) != 1:
        names = ", ".join(site.name for site in sites)
        raise PlacementError(f"{type(model).__name__} has {len(sites)} heads ({names}), not one.")
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad(), captured(model, sites) as found:
            for batch in images.split(batch_size):
                model(batch)
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    layout = sites[0].layout
    features = torch.cat([flatten_samples(h, layout) for h in found[sites[0].name]])
    if len(features) != len(images):
        raise PlacementError(
            f"{sites[0].name} holds {len(features)} vectors for {len(images)} images; features are "
            "one vector an image."
        )
    return features
