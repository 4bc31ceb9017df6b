"""What passed a site and what came back: forward passes, gradients, penalties to be read."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Passes:
    """The passes through one site, for it to notice those that were in vain.

    A copied or loaded site starts anew, since all of this belongs to steps in flight.

    **Attributes:**

    - `pending`: with ``mode="loss"``, the penalties that were not read yet.
    - `came_back`: whether a gradient came to the site since its last forward pass.
    - `injected`: and whether it came through what the site returned.
    - `began`: whether a training forward pass has ever come, in which something was to be done.
    - `rested`: why there was nothing to do in a forward pass; empty if none has come.
    - `unseen`: whether the site was compiled, where passes are not noted.
    """

    def __init__(self) -> None:
        self.pending: list[Tensor] = []
        self.came_back = self.injected = self.began = self.unseen = False
        self.rested = ""
        self._left = [False]  # whether one came in the backward pass of the latest forward pass
        self._since_step = False  # whether a training forward has come since the last step
        self._ever = False  # whether a gradient has ever come
        self._missed = 0  # the steps without one, from the first on

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and store nothing."""
        return Passes, ()

    def forward(self, h: Tensor) -> None:
        """Note a forward pass, and what will come back of it."""
        self.came_back = self.injected = False
        self._since_step = self.began = True
        self._left = left = [False]

        def note_backward(grad: Tensor) -> None:  # noqa: ARG001 (a hook's argument)
            self.came_back = self._ever = left[0] = True

        h.register_hook(note_backward)

    def missed_steps(self) -> int | None:
        """Note a step; return in how many no gradient came to the site, None if one ever did."""
        self._missed += self._since_step
        self._since_step = False
        return None if self._ever else self._missed

    def keep(self, penalty: Tensor) -> None:
        """Keep a penalty until it is read, and with it whether its forward pass is left behind."""
        penalty.vcreg_left = self._left  # type: ignore[attr-defined]
        self.pending.append(penalty)

    def take(self) -> list[Tensor]:
        """Return the penalties that were not read yet, and forget them."""
        pending, self.pending = self.pending, []
        return pending

    def forget_unread(self) -> bool:
        """Drop the penalties of forward passes whose own backward pass has left them behind.

        **Returns:** whether there were any.
        """
        since = [self.came_back]  # what is known of those of compiled code
        kept = [p for p in self.pending if not getattr(p, "vcreg_left", since)[0]]
        forgotten = len(kept) < len(self.pending)
        if forgotten:
            self.pending = kept
        return forgotten
