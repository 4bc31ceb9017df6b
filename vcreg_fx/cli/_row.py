"""One model under ``vcreg-fx coverage``: planned, and one training step of it checked."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from placement_rules import NoSiteError, PlacementError, RecordingError, Site, leaves, operation
from placement_rules._torch import tree_map

from .._shared.keeping import seed_all
from ..functional import vcreg_loss
from ..gradient import VCRegConfig
from ..surgery import Plan, plan
from ._model import load_model
from ._zoo import Example, build, small

_SCALE = VCRegConfig(alpha=2.0, beta=1.0)
_CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative errors of a right gradient
_OTHERWISE = PlacementError("in training it calls other functions than in eval mode")


@dataclass(frozen=True)
class Row:
    """One model.

    **Attributes:**

    - `sites`: how many sites; 0 if there are none.
    - `forms`, `layouts`: which forms and layouts occur, with their counts.
    - `seconds`: from the built model to the plan.
    - `outcome`: ``"planned"``; ``"none"``, if the model has no place that the rule selects;
      ``"refused"``, if it has one that cannot be used; ``"failed"`` (an internal error), or
      ``"wrong"``, if a check found it so. All but the first with a reason.
    - `check`: what a training step gave, if one was run: the gradient's relative error.
    """

    model: str
    rule: str
    outcome: str
    sites: int = 0
    forms: str = ""
    layouts: str = ""
    seconds: float = 0.0
    reason: str = ""
    check: str = ""


def coverage_of(name: str, rule: str, *, checks: bool = False) -> Row:
    """Plan a rule on one model of the zoo; with `checks`, also insert and run a training step."""
    row = _plan(name, rule)
    if not checks or row.outcome != "planned":
        return row
    try:
        right, found = check(name, rule)
    except PlacementError as error:
        return replace(row, check=f"not checked: {error}")
    except Exception as error:
        return replace(row, outcome="failed", reason=f"{type(error).__name__}: {error}")
    if not right:
        return replace(row, outcome="wrong", reason=found, check=found)
    return replace(row, check=found)


def _plan(name: str, rule: str) -> Row:
    start = time.perf_counter()
    try:
        model, inputs = build(name)
        start = time.perf_counter()
        try:
            planned = plan(model, rule, example_inputs=inputs)
        except RecordingError:
            if not any(parameter.is_meta for parameter in model.parameters()):
                raise
            start = time.perf_counter()
            planned = plan(load_model(name), rule, example_inputs=inputs)
    except PlacementError as error:
        outcome = "none" if isinstance(error, NoSiteError) else "refused"
        return Row(name, rule, outcome, seconds=_since(start), reason=str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Row(name, rule, "failed", seconds=_since(start), reason=reason)
    sites, seconds = planned.sites, _since(start)
    forms, layouts = ((site.form for site in sites), (str(site.layout) for site in sites))
    return Row(name, rule, "planned", len(sites), _count(forms), _count(layouts), seconds)


def _count(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ", ".join(f"{count} {value}" for value, count in sorted(counts.items()))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


# The check: a training step, compared with the naive losses ------------------------------------


def check(name: str, rule: str) -> tuple[bool, str]:
    """Insert into a model and run it, in eval mode and through a training step.

    The outputs have to equal the plain model's bit for bit, and the gradient that of the naive
    losses, differentiated by autograd, of the tensors that hooks and a function mode see at the
    sites. Over two examples, batch norms magnify rounding, so that what misses 1e-5 in float32 has
    to be right in float64. The model is built with weights, on small images where it takes them.

    **Returns:** whether all is right, and what was found: the gradient's relative error.

    **Raises:** `PlacementError` if the rule does not apply.
    """
    plain, example = small(name)
    given: dict[str, Any] = {"example_inputs": example[0], "example_kwargs": example[1]}
    planned = plan(plain, rule, **given)
    inserted = plan(copy.deepcopy(plain), rule, **given).apply(_SCALE)
    buffers = copy.deepcopy(plain.state_dict())
    for training in (False, True):
        outputs = []
        for model in (plain, inserted):
            model.load_state_dict(buffers)
            outputs.append(_run(model.train(training), example, torch.no_grad()))
        if not all(torch.equal(one, other) for one, other in zip(*outputs, strict=True)):
            return False, f"outputs differ in {'training' if training else 'eval mode'}"
    found = ""
    for dtype, close in _CLOSE.items():
        example = tree_map(lambda item: item.to(dtype) if _is_float(item) else item, example)  # noqa: B023
        error = _error(planned, plain.to(dtype), inserted.to(dtype), example)
        found = f"{error:.0e}" + (" in float64" if dtype == torch.float64 else "")
        if error <= close:
            return True, found
    return False, f"the gradient is off by {found}"


def _error(planned: Plan, plain: nn.Module, inserted: nn.Module, example: Example) -> float:
    gradients = []
    watched: AbstractContextManager[list[Tensor]]
    for model, watched in ((plain, _penalties(planned)), (inserted, nullcontext([]))):
        model.train().zero_grad()
        with watched as penalties:
            outputs = _run(model, example)
        loss = torch.stack([output.square().mean() for output in outputs]).sum()
        (loss + sum(penalties)).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        gradients.append(torch.cat([grad.double().flatten() for grad in grads]))
    expected, found = gradients
    return float((found - expected).norm() / expected.norm())


@contextmanager
def _penalties(planned: Plan) -> Iterator[list[Tensor]]:
    """Collect the naive losses of what passes at the sites while the planned model runs."""
    from ..evaluation._taps import hook

    found: list[Tensor] = []

    def note(site: Site, h: Tensor) -> None:
        if h.ndim != site.layout.ndim:
            raise _OTHERWISE
        with torch.autocast(h.device.type, enabled=False):
            copied = h.clone()  # the model may write to it further down
            found.append(vcreg_loss(copied, _SCALE.alpha, _SCALE.beta, layout=site.layout))

    # Where nothing leads on to the output, no gradient comes back.
    alive = [site for site in planned.sites if site.leads_on]
    counter = _Counter(planned, [site for site in alive if site.form == "inside"], note)
    with ExitStack() as hooks, counter:
        for site in alive:
            if site.form == "boundary":
                hooks.enter_context(hook(planned.model, site, partial(counter.aside, site)))
        yield found
    if counter.seen != counter.expected:
        raise _OTHERWISE


class _Counter(TorchFunctionMode):
    """Counts calls of torch's functions, by which the sites in the middle of forwards are told."""

    def __init__(
        self, planned: Plan, sites: list[Site], note: Callable[[Site, Tensor], None]
    ) -> None:
        super().__init__()
        by_name = {site.name: site for site in sites}
        spots = [spot for spot in planned.rule.select(planned.recording) if spot.name in by_name]
        self._kinds = {_kind(spot.flat) for spot in spots}
        calls = [
            node
            for node in planned.recording.flat.nodes
            if node.op == "call_function"
            and _is_float(node.meta["val"])
            and _kind(node) in self._kinds
        ]
        self._sites = {calls.index(spot.flat): by_name[spot.name] for spot in spots}
        self._note, self._rests = note, False
        self.seen, self.expected = 0, len(calls)

    def aside(self, site: Site, h: Tensor) -> None:
        """Note a tensor without counting what that takes."""
        self._rests = True
        self._note(site, h)
        self._rests = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function, and note its tensor if it is a site's."""
        output = func(*args, **(kwargs or {}))
        if self._rests or not _is_float(output):
            return output
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        if (operation(func), len(tensors)) in self._kinds:
            if (site := self._sites.get(self.seen)) is not None:
                self._note(site, output)
            self.seen += 1
        return output


def _kind(node: torch.fx.Node) -> tuple[str, int]:
    """Return what tells one kind of calls: the operation, and how many tensors it is given.

    Drop path, which runs in training only, adds a tensor and a number.
    """
    given = [
        item for item in (*node.args, *node.kwargs.values()) if isinstance(item, torch.fx.Node)
    ]
    return operation(node.target), len(given)


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _run(model: nn.Module, example: Example, context: Any = None) -> list[Tensor]:
    seed_all(0)
    with context or torch.enable_grad():
        output = model(*example[0], **example[1])
    return [tensor for _, tensor in leaves(output) if tensor.is_floating_point()]
