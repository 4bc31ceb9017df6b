"""The floor: the time of the two matrix products of all sites, and of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ._clock import Clock


class Floor:
    """Does the products zᵀz and z G of every site on contiguous matrices.

    **Arguments:**

    - `shapes`: (n, d) of each site.
    - `dtype`: of the factors.
    - `device`: where.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._work: list[tuple[int, Tensor, Tensor]] = []
        for (n, d), count in Counter(shapes).items():
            z = torch.randn((n, d), device=device).to(dtype)
            g = torch.randn((d, d), device=device).to(dtype)
            self._work.append((count, z, g))

    def run(self) -> None:
        """Do all products once."""
        for count, z, g in self._work:
            for _ in range(count):
                torch.mm(z.T, z)
                torch.mm(z, g)

    def timed(self, clock: Clock) -> float:
        """Return how long they take, in seconds."""
        return clock.of(self.run)
