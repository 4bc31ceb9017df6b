"""Which regularizer acts at a site: VCReg, a competitor by its name, or a user's function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from .._errors import InsertionError
from .._shared.names import name_of, named_function
from ..functional import decov_loss, radial_vcreg_loss, sigreg_loss, wld_loss
from ._config import VCRegConfig

Penalize = Callable[[Tensor], Tensor]
COMPETITORS: dict[str, Penalize] = {
    "decov": decov_loss,
    "wld": wld_loss,
    "sigreg": sigreg_loss,
    "radial": radial_vcreg_loss,
}
_NAMES = ("vcreg", "variance", *COMPETITORS)


def choose(
    regularizer: str | Penalize, config: VCRegConfig
) -> tuple[Penalize | None, VCRegConfig, str | Penalize]:
    """Return the function that acts at the sites, the configuration for it, and its name.

    The function is None for VCReg and its variance term, whose gradient is in closed form.

    **Arguments:**

    - `regularizer`: ``"vcreg"``, ``"variance"``, a name of `COMPETITORS`, a function of z (n, d)
      that returns a scalar, or ``"module:function"``, which names one.

    **Raises:** `InsertionError` for anything else, and for a configuration that only VCReg has.
    """
    if regularizer == "vcreg":
        return None, config, "vcreg"
    if regularizer == "variance":
        return None, replace(config, beta=0.0), "variance"
    if config.convention == "algorithm1":
        raise InsertionError(
            'convention="algorithm1" is a way to write VCReg\'s gradient; use it with '
            'regularizer="vcreg".'
        )
    if config.estimates:
        raise InsertionError(
            'interval and sample estimate VCReg\'s gradient; use them with regularizer="vcreg".'
        )
    if config.ratio is not None:
        raise InsertionError(
            "ratio fades where VCReg's penalty is satisfied, and nothing says where another "
            'one is; use it with regularizer="vcreg" or "variance".'
        )
    by_autograd = replace(config, backend="naive")
    if callable(regularizer):
        return regularizer, by_autograd, name_of(regularizer)
    if regularizer in COMPETITORS:
        return COMPETITORS[regularizer], by_autograd, regularizer
    return _find(regularizer), by_autograd, regularizer


def _find(name: str) -> Penalize:
    found = named_function(name)
    if found is None:
        raise InsertionError(
            f"There is no regularizer {name!r}. There are {', '.join(_NAMES)}; or give a function "
            'of z (n, d) that returns a scalar, or its name as "module:function".'
        )
    return found
