"""How strong VCReg is at each site, measured before training, and α and β chosen by that."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import InsertionError
from .._shared.keeping import keeping_modes
from .._shared.tables import align
from ..functional import correlations_of, covariance, flatten_samples, off_diagonal
from ..gradient import penalty_gradient, strength
from ._live import LiveSite
from ._registry import live_sites

if TYPE_CHECKING:
    import pandas

Seen = tuple[Tensor, Tensor | None]  # an activation, and which of its positions are no samples


@dataclass(frozen=True)
class SiteMeasurement:
    """What one step of training would see at a site.

    **Attributes:**

    - `site`: the site's name.
    - `n`, `d`: samples and channels.
    - `variance_loss`, `covariance_loss`: ℓ_var (Eq. 3) and ℓ_cov (Eq. 4 or 10), without α and β.
    - `std`: √(C_ii + ε), mean over features.
    - `correlation`: |C_ij| / √(C_ii C_jj), mean over pairs of different features.
    - `task`: ‖∂ task loss / ∂h‖.
    - `ratio`: ‖∂ penalty / ∂h‖ / ‖∂ task loss / ∂h‖, the penalty being this site's alone, times
      the factor that `VCRegConfig.ratio` makes, if it is given; with ``calls="mean"``, divided by
      the number of this pass's calls of the site.
    - `variance_ratio`, `covariance_ratio`: the same of α ℓ_var and of β ℓ_cov alone.
    """

    site: str
    n: int
    d: int
    variance_loss: float
    covariance_loss: float
    std: float
    correlation: float
    task: float
    ratio: float
    variance_ratio: float
    covariance_ratio: float


class Measurement(list[SiteMeasurement]):
    """One `SiteMeasurement` a site; printed as a table."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as plain data."""
        return [asdict(row) for row in self]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a data frame, indexed by site."""
        import pandas

        columns = [item.name for item in fields(SiteMeasurement)]
        return pandas.DataFrame(self.to_dicts(), columns=columns).set_index("site")

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table of the sites as text: its head, and a row a site."""
        head = ("site", "n", "d", "ℓ_var", "ℓ_cov", "std", "|corr|", "VCReg/task", "of α", "of β")
        rows = [
            (
                row.site, str(row.n), str(row.d),
                *(f"{v:.3g}" for v in (
                    row.variance_loss, row.covariance_loss, row.std, row.correlation, row.ratio,
                    row.variance_ratio, row.covariance_ratio,
                )),
            )
            for row in self
        ]  # fmt: skip
        return [head, *rows]

    def __str__(self) -> str:
        """Return a table of the sites."""
        return align(self.cells())


def measure(
    model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor], *, train: bool = True
) -> Measurement:
    """Measure VCReg at every site on one batch, without training and without leaving a trace.

    At each site the gradient of its penalty is compared with the gradient of the task loss that
    arrives there. A ratio far above one means that VCReg overrules the task, one far below that it
    hardly acts.

    **Arguments:**

    - `model`: a model into which VCReg was inserted, not wrapped or compiled.
    - `inputs`: one batch: a tensor, a tuple of positional arguments, or a mapping of keywords.
    - `loss`: takes the model's output and returns the task loss, a scalar.
    - `train`: measure in training mode, as training will see it; otherwise in the model's mode now.

    **Returns:** a `Measurement`: a row a site, printable, with ``to_pandas()``.

    **Raises:** `InsertionError` if nothing was inserted, or no gradient reaches any site.
    """
    sites = live_sites(model)
    if not sites:
        raise InsertionError("VCReg was not inserted into this model; there is nothing to measure.")
    with _undisturbed(model), _probes(sites) as seen:
        if train:
            model.train()
        with torch.enable_grad():
            output = _call(model, inputs)
            _check_loss(loss, output)
            value = loss(output)
        pairs = [(site, *noted) for site in sites for noted in seen[site.name]]
        if not pairs:
            raise InsertionError(
                "No site saw an activation with a gradient: the layers before the sites are "
                "frozen, or under reentrant checkpointing, which hides them."
            )
        grads = torch.autograd.grad(value, [h for _, h, _ in pairs], allow_unused=True)
        calls: dict[str, list[SiteMeasurement]] = {}
        reached = Counter(
            site.name for (site, *_), grad in zip(pairs, grads, strict=True) if grad is not None
        )
        for (site, h, absent), grad in zip(pairs, grads, strict=True):
            count = reached[site.name] if site.config.calls == "mean" else 1
            calls.setdefault(site.name, []).append(_measured(site, h, absent, grad, max(count, 1)))
    return Measurement(row for rows in calls.values() for row in rows)


def _check_loss(loss: Callable[[Any], Tensor], output: Any) -> None:
    """Refuse a criterion that takes targets, too."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        return  # some functions of C have none
    try:
        signature.bind(output)
    except TypeError as error:
        raise InsertionError(
            f"loss is called with the model's output alone, and this one takes {signature}: "
            f"{error}. Write loss=lambda output: cross_entropy(output, labels)."
        ) from error


def _measured(
    site: LiveSite, h: Tensor, absent: Tensor | None, grad: Tensor | None, calls: int
) -> SiteMeasurement:
    h = h.detach()
    z = flatten_samples(h, site.layout, None if absent is None else ~absent)
    z = z.to(torch.promote_types(h.dtype, torch.float32))
    config = replace(site.config, alpha=site.alpha, beta=site.beta, sync=False, ratio=None)
    if site.penalize is not None:
        raise InsertionError(
            f"{site.name} has a regularizer other than VCReg; measure compares VCReg's two terms."
        )
    of_variance, variances, covariance_loss = penalty_gradient(
        h, site.layout, replace(config, beta=0.0), absent
    )
    of_covariance, _, _ = penalty_gradient(h, site.layout, replace(config, alpha=0.0), absent)
    task = 0.0 if grad is None else float(grad.norm(dtype=z.dtype))
    factor = 1 / calls
    if site.config.ratio is not None:
        squared = (of_variance + of_covariance).to(z.dtype).square().sum()
        how = (site.alpha, site.beta, z.shape[0], 1, z.shape[1], replace(site.config, sync=False))
        factor = float(strength(torch.zeros_like(h) if grad is None else grad, squared, *how))

    def ratio(gradient: Tensor) -> float:
        if not task:
            return float("inf") if site.config.ratio is None else 0.0
        return factor * float(gradient.norm(dtype=z.dtype)) / task

    std = variances.sqrt()
    return SiteMeasurement(
        site=site.name,
        n=z.shape[0],
        d=z.shape[1],
        variance_loss=float(torch.relu(config.gamma - std).mean()),
        covariance_loss=float(covariance_loss),
        std=float(std.mean()),
        correlation=float(off_diagonal(correlations_of(covariance(z))).abs().nanmean()),
        task=task,
        ratio=ratio(of_variance + of_covariance),
        variance_ratio=ratio(of_variance),
        covariance_ratio=ratio(of_covariance),
    )


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def _probes(sites: list[LiveSite]) -> Iterator[dict[str, list[Seen]]]:
    """Let the sites note their activations instead of regularizing them."""
    seen: dict[str, list[Seen]] = {site.name: [] for site in sites}

    def noting(site: LiveSite) -> Callable[[Tensor, Tensor | None], None]:
        return lambda h, absent: seen[site.name].append((h, absent))

    try:
        for site in sites:
            site.probe = noting(site)
        yield seen
    finally:
        for site in sites:
            site.probe = None


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Give back modes, buffers and random numbers as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type not in {"cpu", "meta"}}
    kinds = {device.type for device in devices}
    try:
        kind = (kinds or {"cuda"}).pop()
        with keeping_modes(model), torch.random.fork_rng(devices=list(devices), device_type=kind):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


# α and β of each site from one batch, so that VCReg is as strong as it is wanted -----------------


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` did; printed as a table.

    **Attributes:**

    - `ratio`: what was asked for.
    - `before`, `after`: what `vcreg_fx.measure` saw, on the same batch.
    - `coefficients`: ``{site: {"alpha": …, "beta": …}}``, as `vcreg_fx.insert` takes them.
    """

    ratio: float
    before: Measurement
    after: Measurement
    coefficients: Mapping[str, Mapping[str, float]]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table of the sites as text: its head, and a row a site."""
        rows: list[tuple[str, ...]] = [("site", "α", "β", "VCReg/task before", "after")]
        was, now = strengths(self.before), strengths(self.after)
        for name, values in self.coefficients.items():
            numbers = (values["alpha"], values["beta"], was[name], now[name])
            rows.append((name, *(f"{number:.3g}" for number in numbers)))
        return rows

    def __str__(self) -> str:
        """Return a table of the sites."""
        return align(self.cells())


def calibrate(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    ratio: float = 0.1,
    *,
    train: bool = True,
) -> Calibration:
    """Set α and β of each site so that VCReg's gradient is `ratio` times the task's there.

    Measured on one batch, as `measure` does, and without a trace but for the coefficients: both are
    multiplied by one number a site, so that they keep their proportion. Where one forward pass
    calls a site several times, the norms are over all of its calls.

    At the start of a training run gradients are not yet what they will be: calibrate on a model
    that has trained for a while, or let ``ratio=`` of `VCRegConfig` do so at every step.

    **Arguments:** as for `measure`, and

    - `ratio`: ‖∂ penalty / ∂h‖ / ‖∂ task loss / ∂h‖, from 0 (exclusive).

    **Returns:** a `Calibration`: the table before and after, and the coefficients, for `insert`.

    **Raises:** `InsertionError` if nothing was inserted, or at some site no gradient of one of the
    two arrives, so that no coefficient makes the ratio; `ValueError` for a ratio that is none.
    Nothing has been changed then.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio={ratio!r} must be a finite number > 0.")
    sites = live_sites(model)
    kept = [site.name for site in sites if site.config.ratio is not None]
    if kept:
        raise InsertionError(
            f"{', '.join(kept)}: inserted with ratio=, which finds the strength anew at every "
            "step. There is nothing to calibrate."
        )
    before = measure(model, inputs, loss, train=train)
    found = strengths(before)
    _check(found, [site.name for site in sites])
    for site in sites:
        factor = ratio / found[site.name]
        site.alpha, site.beta = factor * site.alpha, factor * site.beta
    coefficients = {site.name: {"alpha": site.alpha, "beta": site.beta} for site in sites}
    return Calibration(ratio, before, measure(model, inputs, loss, train=train), coefficients)


def strengths(measured: Measurement) -> dict[str, float]:
    """Return ‖∂ penalty / ∂h‖ / ‖∂ task loss / ∂h‖ by site, over all of its calls."""
    found = {}
    for name in dict.fromkeys(row.site for row in measured):
        calls = [row for row in measured if row.site == name]
        task = math.hypot(*(row.task for row in calls))
        penalty = math.hypot(*(row.ratio * row.task if row.task else 0.0 for row in calls))
        found[name] = penalty / task if task else math.inf
    return found


def _check(found: Mapping[str, float], names: list[str]) -> None:
    reasons = []
    for name in names:
        if name not in found:
            reasons.append(f"{name} saw no activation with a gradient (is it frozen?)")
        elif found[name] == math.inf:
            reasons.append(f"no gradient of the task arrives at {name}")
        elif found[name] == 0:
            reasons.append(f"the penalty of {name} is satisfied, or its α and β are 0")
        elif math.isnan(found[name]):
            reasons.append(f"a gradient at {name} is NaN")
    if reasons:
        raise InsertionError(
            f"No α and β make the ratio: {'; '.join(reasons)}. Choose a rule, or another batch, "
            "without these sites. Nothing was changed."
        )
