"""The numbers of the last training step, for a logger."""

from __future__ import annotations

import torch
from torch import nn

from ._registry import named_sites


def metrics(model: nn.Module, prefix: str = "vcreg") -> dict[str, float]:
    """Return the numbers of the last training step as a flat dictionary.

    The step computed them on its way: no activation is read again, and nothing waits for the
    device until this call, which fetches all of them at once. Sites that took part in no step are
    left out.

    **Arguments:**

    - `prefix`: the first part of every key.

    **Returns:** for each site, ``prefix/site/penalty`` (α ℓ_var + β ℓ_cov, Eq. 5),
    ``…/variance_loss`` (Eq. 3), ``…/covariance_loss`` (Eq. 4 or 10), ``…/std`` (mean over
    features), ``…/below_gamma`` (share of the features whose std is below γ) and ``…/nonfinite``
    (share of the features with an infinity or NaN among their samples, or a variance too large for
    the type; not 0 means that the site's gradient is NaN); and ``prefix/penalty``, the sum of the
    penalties. A site with ``ratio`` also has ``…/factor``, by which its penalty's gradient was
    multiplied. A site with another regularizer has no two losses, and its penalty is
    α times its value.
    """
    names: list[str] = []
    found: list[torch.Tensor] = []
    for name, site in named_sites(model):
        numbers = site.numbers
        std, covariance, enough = numbers.std, numbers.loss, numbers.enough
        if numbers.values is None or std is None or covariance is None or enough is None:
            continue
        variance = torch.relu(site.config.gamma - std).mean() * enough
        if site.penalize is None:
            losses = {
                "penalty": site.alpha * variance + site.beta * covariance,
                "variance_loss": variance,
                "covariance_loss": covariance,
            }
        else:
            losses = {"penalty": site.alpha * covariance}
        values = {
            **losses,
            "std": std.mean(),
            "below_gamma": (std < site.config.gamma).to(std.dtype).mean(),
            "nonfinite": (~std.isfinite()).to(std.dtype).mean(),
        }
        if site.config.ratio is not None:
            values["factor"] = numbers.values[-1]
        names += [f"{prefix}/{name}/{key}" for key in values]
        found += values.values()
    if not found:
        return {}
    device = found[0].device
    fetched = torch.stack([value.double().to(device) for value in found]).tolist()
    result = dict(zip(names, fetched, strict=True))
    result[f"{prefix}/penalty"] = sum(v for k, v in result.items() if k.endswith("/penalty"))
    return result
