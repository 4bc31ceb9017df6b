"""Which axis of a tensor is the channel axis."""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import LayoutError

_NAMES = {
    (2, 1): "NC",
    (3, 1): "NCL",
    (3, 2): "NLC",
    (4, 1): "NCHW",
    (4, 3): "NHWC",
    (5, 1): "NCTHW",
    (5, 4): "NTHWC",
}


@dataclass(frozen=True)
class Layout:
    """The number of axes of a tensor and which of them holds the channels.

    Every other axis holds samples: each spatial location counts as a sample of its own.

    **Arguments:**

    - `ndim`: number of axes.
    - `axis`: index of the channel axis, ``0 <= axis < ndim``.
    """

    ndim: int
    axis: int

    def __post_init__(self) -> None:
        """Check that the axis exists."""
        if not 0 <= self.axis < self.ndim:
            raise LayoutError(f"A tensor with {self.ndim} axes has no axis {self.axis}.")

    @classmethod
    def parse(cls, text: str | Layout) -> Layout:
        """Read a layout such as ``"NCHW"``: one letter an axis, ``C`` for the channels.

        **Raises:** `LayoutError` if there is not exactly one ``C`` or a letter is repeated.
        """
        if isinstance(text, Layout):
            return text
        letters = text.strip().upper()
        if letters.count("C") != 1 or len(set(letters)) != len(letters) or not letters.isalpha():
            raise LayoutError(
                f"{text!r} is not a layout. Write one letter an axis and exactly one C for the "
                'channel axis: "NC", "NLC", "NCHW", "NHWC", "NCTHW", "NTHWC".'
            )
        return cls(len(letters), letters.index("C"))

    @property
    def sample_axes(self) -> tuple[int, ...]:
        """Every axis but the channel axis."""
        return tuple(axis for axis in range(self.ndim) if axis != self.axis)

    def __str__(self) -> str:
        """Return the usual name (``"NCHW"``), or letters with ``C`` at the channel axis."""
        if name := _NAMES.get((self.ndim, self.axis)):
            return name
        others = iter("NABDEFGHIJKLM")
        return "".join("C" if axis == self.axis else next(others) for axis in range(self.ndim))
