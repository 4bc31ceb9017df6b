"""What stands at a site where VCReg would."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ._live import LiveSite


class StandIn:
    """Acts in the place of a live site: the activation becomes ``act(activation)``.

    **Arguments:**

    - `site`: whose place it takes. What is demeaned there goes on being demeaned by it.
    - `always`: whether to act outside of training, too.
    """

    def __init__(
        self, site: LiveSite, act: Callable[[Tensor], Tensor], always: bool = False
    ) -> None:
        self.name, self.layout = site.name, site.layout
        self.less, self.absent, self.demeaned = site.less, site.absent, site.demeaned
        self._act, self._always = act, always

    def active(self, h: Tensor, training: bool) -> bool:
        """Say whether to act."""
        return training or self._always

    def reference_mean(self, h: Tensor) -> None:
        """Leave the mean to `act`."""

    def regularize(self, h: Tensor, reference: Tensor | None) -> Tensor:
        """Return what becomes of the activation."""
        return self._act(h)
