"""Mutual information by a neural estimator (MINE, Belghazi et al. 2018, arXiv 1801.04062)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._shared.keeping import seeded

_EMA = 0.01  # how fast the average that corrects the gradient's bias follows
_SHIFTS = 16  # independent pairings of the test samples, against the noise of few samples
_CHECKS = 40  # how often a run looks at its validation samples


def mutual_information(
    x: Tensor,
    z: Tensor,
    *,
    steps: int = 2000,
    batch_size: int = 512,
    hidden: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> float:
    """Estimate the mutual information of inputs and features, as in VCReg's table 6.

    A network T maximizes the bound of Donsker and Varadhan, E[T(x, z)] − log E[exp T(x, z′)], where
    z′ belongs to another sample; the gradient of the second term is corrected by a moving average
    (MINE, section 3.2). T is trained on half of the samples, the step is chosen on a quarter, and
    the estimate comes from the last quarter, so that T cannot raise it by learning samples by
    heart.

    The estimate is a lower bound. It cannot grow much beyond the logarithm of the number of pairs
    that it comes from, 16 for each test sample, so compare only estimates from equally many
    samples. A deterministic function of a
    continuous input has infinite mutual information with it; what is compared is how much of it a
    small network can see.

    **Arguments:**

    - `x`: inputs, shape (n, …); flattened and standardized.
    - `z`: features of the same samples, shape (n, …), likewise.
    - `steps`, `batch_size`, `learning_rate`: of Adam.
    - `hidden`: width of the two hidden layers.
    - `seed`: of the split, the weights, the batches.

    **Returns:** the estimate in nats; divide by ln 2 for bits. Never below 0.

    **Raises:** `ValueError` for fewer than 16 samples, or unequally many.
    """
    if len(x) != len(z) or len(x) < 16:
        raise ValueError(
            f"x has {len(x)} samples and z has {len(z)}; both must have the same, 16 at least."
        )
    x, z = _standardize(x), _standardize(z)
    with seeded(seed, x.device), torch.enable_grad():
        order = torch.randperm(len(x)).to(x.device)
        train, validation, test = order.tensor_split([len(x) // 2, 3 * len(x) // 4])
        network = _Statistics(x.shape[1], z.shape[1], hidden).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        average: Tensor | None = None
        best = (0.0, 0.0)  # the constant network: no information on either part
        for step in range(1, steps + 1):
            chosen = train[torch.randint(len(train), (batch_size,)).to(x.device)]
            other = train[torch.randint(len(train), (batch_size,)).to(x.device)]
            joint = network(x[chosen], z[chosen]).mean()
            apart = _log_mean_exp(network(x[chosen], z[other]))
            now = apart.detach()
            average = now if average is None else _blend(average, now)
            optimizer.zero_grad()
            ((apart - average).exp() - joint).backward()
            optimizer.step()
            if step % max(steps // _CHECKS, 1) == 0 or step == steps:
                with torch.no_grad():
                    found = tuple(_bound(network, x[p], z[p]) for p in (validation, test))
                if found[0] > best[0]:
                    best = (found[0], found[1])
    return max(best[1], 0.0)


class _Statistics(nn.Module):
    """The statistics network T."""

    def __init__(self, x_size: int, z_size: int, hidden: int) -> None:
        super().__init__()
        self.x = nn.Linear(x_size, hidden)
        self.z = nn.Linear(z_size, hidden, bias=False)
        self.rest = nn.Sequential(
            nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.rest(self.x(x) + self.z(z))
        return out.squeeze(1)


def _bound(network: nn.Module, x: Tensor, z: Tensor) -> float:
    """Return the bound of Donsker and Varadhan on some samples."""
    joint = network(x, z).mean()
    shifts = torch.linspace(1, len(x) - 1, min(_SHIFTS, len(x) - 1)).long().unique().tolist()
    apart = torch.cat([network(x, z.roll(shift, 0)) for shift in shifts])
    return float(joint - _log_mean_exp(apart))


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.logsumexp(0) - math.log(len(values))


def _blend(average: Tensor, now: Tensor) -> Tensor:
    """Return the moving average of exp, as its logarithm."""
    return torch.logaddexp(average + math.log1p(-_EMA), now + math.log(_EMA))


def _standardize(values: Tensor) -> Tensor:
    flat = (
        values.detach().flatten(1).float() if values.ndim > 1 else values.detach()[:, None].float()
    )
    std, mean = torch.std_mean(flat, dim=0)
    return (flat - mean) / torch.where(std > 0, std, 1)
