"""Where the numbers of each epoch go: TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class Log:
    """Writes the numbers of each epoch for TensorBoard. Used as a context.

    **Arguments:**

    - `folder`: of one run; None writes nothing.

    **Raises:** `ModuleNotFoundError` if TensorBoard is missing:
    ``pip install "vcreg-fx[reproduce]"``.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Log:
        """Begin to write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def write(self, numbers: Mapping[str, float]) -> None:
        """Write the numbers of one epoch; ``numbers["epoch"]`` says which."""
        if self._writer is not None:
            for name, value in numbers.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(numbers["epoch"]))
