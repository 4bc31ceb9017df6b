"""Notice, at the optimizers' steps, a loop that scales its loss and has not said so."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from placement_rules._torch import in_backward

from ._calling import calling_scaler, loss_may_be_scaled, outside_torch, what_follows
from ._passes import Passes

FORGOTTEN = (
    'with mode="loss" a backward pass has ended and nobody has read the penalties of its forward '
    "pass: VCReg has done nothing there, and those penalties are dropped, as the graphs that they "
    "belong to are spent. Add them to the loss of each step, loss + vcreg_fx.penalty(model), or "
    'insert with mode="gradient".'
)
_LOOKED = 10  # the first steps of an optimizer, in which a GradScaler is looked for
_MISSED = 10  # steps without a gradient, after which a site is reported
_IDLE = {
    "eval": "the model is in eval mode, in which from_pretrained leaves it (call model.train())",
    "frozen": "nothing before the sites is trained, so that no gradient passes them",
}
_watches: weakref.WeakKeyDictionary[nn.Module, StepWatch] = weakref.WeakKeyDictionary()
_hooks: list[Any] = []


class Watched(Protocol):
    """What is asked of a site at a step."""

    name: str
    steps: StepWatch | None
    passes: Passes

    @property
    def needs_scale(self) -> bool:
        """Whether the site adds a gradient without knowing how the loop scales its loss."""

    @property
    def has_acted(self) -> bool:
        """Whether a step has left its numbers."""


class StepWatch:
    """Counts the backward passes of a model between the steps of the optimizers that train it.

    A pass is a backward pass after a forward pass: views that are forwarded together count once,
    and so do the parts of a checkpointed model. A pass that finds its gradients cleared begins
    anew (the discriminator of a GAN, the first half of a SAM step), and one whose loss is known
    not to be scaled is a term of a sum.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forwarded = False  # whether a forward pass has come since the last backward pass
        self.sites: weakref.WeakSet[Watched] = weakref.WeakSet()
        self.unreached: weakref.WeakSet[Watched] = weakref.WeakSet()  # to which none came yet
        self._model = weakref.ref(model)
        self._passes = 0
        self._told = self._told_unread = self._told_idle = False
        self._steps = 0  # since the sites are watched
        self._first: _Count | None = None  # until the optimizer is known
        self._counts: weakref.WeakKeyDictionary[Optimizer, _Count] = weakref.WeakKeyDictionary()

    def went_back(self) -> None:
        """Note that a gradient has passed a site that was told no scale."""
        if not self.forwarded or self._told:
            return
        self.forwarded = False
        self._passes += 1
        counts = list(self._counts.values())
        if self._first is None and not counts and (model := self._model()) is not None:
            self._first = _Count(_last_reached(list(model.parameters())))
        for count in (*counts, *([self._first] if self._first is not None else ())):
            count.look(self._passes)

    def stepped(self, optimizer: Optimizer) -> None:
        """Note a step, and warn once if the passes before it call for a scale."""
        count = self._counts.get(optimizer)
        if count is None:
            count = self._counts[optimizer] = self._meet(optimizer)
        if count.holds:
            self.look_for_unread()
            self._look_for_unreached()
            if not self._told_idle:
                self._look_for_idle(type(optimizer).__name__)
        if self._told:
            return
        k = self._passes - count.base - count.summed
        count.base, count.summed = self._passes, 0
        scaler = None
        if count.holds and count.looked < _LOOKED:
            count.looked += any(site.has_acted for site in self.sites)
            scaler = calling_scaler() if count.looked else None
        calls_for_scale = (k > 1 and count.tells) or scaler is not None
        if calls_for_scale and any(site.needs_scale for site in self.sites):
            self._told = True
            warnings.warn(_message(optimizer, k, scaler), stacklevel=outside_torch())

    def look_for_unread(self) -> None:
        """Drop the penalties that a backward pass has left behind, and warn of them once."""
        forgotten = [site for site in self.sites if site.passes.forget_unread()]
        if forgotten and not self._told_unread:
            self._told_unread = True
            message = f"At {len(forgotten)} sites, {FORGOTTEN}"
            warnings.warn(message, stacklevel=outside_torch())

    def _look_for_unreached(self) -> None:
        """Warn once of sites that were passed in each step and never got a gradient."""
        if in_backward():  # where optimizers step as their parameters' gradients come
            return
        late = []
        for site in list(self.unreached):
            missed = site.passes.missed_steps()
            if missed is None or missed >= _MISSED:
                self.unreached.discard(site)
            late += [site.name] if missed is not None and missed >= _MISSED else []
        model = self._model()
        if late and model is not None and any(p.grad is not None for p in model.parameters()):
            warnings.warn(
                f"In {_MISSED} steps no gradient has come back to {', '.join(sorted(late))}, while "
                "other parts of the model were trained: the loss does not depend on what follows "
                "there (it is detached, or not used yet), and VCReg has done nothing at that "
                "place. Use a rule that leaves it out, or a loss that depends on it.",
                stacklevel=outside_torch(),
            )

    def _look_for_idle(self, optimizer: str) -> None:
        """Warn once, after the first steps, where no site had anything to do, or one was not run.

        Sites that only rest beside others that act, as in a model that is frozen in part, are as
        they were meant.
        """
        idle = [site for site in self.sites if not (site.passes.began or site.has_acted)]
        self._steps += 1
        self._told_idle = not idle or self._steps >= _MISSED
        if not idle or self._steps < _MISSED or any(site.passes.unseen for site in idle):
            return
        if len(idle) == len(self.sites) and (reasons := {s.passes.rested for s in idle} - {""}):
            why = " and ".join(_IDLE[reason] for reason in sorted(reasons))
            where = "at any site"
        elif idle := [site for site in idle if not site.passes.rested]:
            why = "no forward pass has come through what they stand in"
            where = f"at {', '.join(sorted(site.name for site in idle))}"
        else:
            return
        warnings.warn(
            f"VCReg has done nothing {where} in {_MISSED} steps of {optimizer}: {why}.",
            stacklevel=outside_torch(),
        )

    def _meet(self, optimizer: Optimizer) -> _Count:
        """Start to count for an optimizer; what was counted before its first step is its own."""
        model = self._model()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        common = [p for p in model.parameters() if id(p) in held] if model is not None else []
        first = self._first
        if first is not None and any(first.parameter() is p for p in common):
            self._first = None
            return first
        with_grad = [p for p in common if p.grad is not None]
        count = _Count(next(iter(with_grad or common), None))
        count.base = self._passes
        return count


class _Count:
    """The passes since the last step of one optimizer.

    **Attributes:**

    - `parameter`: one that it steps, whose gradient tells whether it was cleared.
    - `tells`: whether it does, as the first pass after a step shows.
    - `base`: the number of the last pass that does not count.
    - `summed`: passes since, whose loss is a term of a sum.
    """

    def __init__(self, parameter: nn.Parameter | None) -> None:
        self.holds = parameter is not None
        self.parameter = weakref.ref(parameter) if parameter is not None else lambda: None
        self.tells: bool | None = None
        self.base = self.summed = self.looked = 0

    def look(self, passes: int) -> None:
        """Tell a second pass without a step between: of a new step, of a sum, or accumulated."""
        if self.tells is False:
            return
        if passes - self.base == 1:
            if self.tells is None:  # a gradient that is there already lies after the sites
                self.tells = _is_cleared(self.parameter())
        elif _is_cleared(self.parameter()):
            self.base, self.summed = passes - 1, 0
        elif not loss_may_be_scaled():
            self.summed += 1


def watch_steps(model: nn.Module, sites: Iterable[Watched]) -> StepWatch:
    """Watch the steps of the optimizers that train a model; one hook serves the whole process."""
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_after_step))
    watch = _watches.get(model)
    if watch is None:
        watch = _watches[model] = StepWatch(model)
    for site in sites:
        site.steps = watch
        watch.sites.add(site)
        watch.unreached.add(site)
    return watch


def watch_of(model: nn.Module) -> StepWatch | None:
    """Return what watches this very model's steps; a copy or a loaded model has nothing yet."""
    return _watches.get(model)


def forget_steps(model: nn.Module) -> None:
    """Watch a model no more."""
    _watches.pop(model, None)


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
    if torch.compiler.is_compiling():
        return
    for watch in list(_watches.values()):
        watch.stepped(optimizer)


def _last_reached(parameters: list[nn.Parameter]) -> nn.Parameter | None:
    """Return a parameter that the running backward pass reaches after the sites, most likely."""
    trained = [p for p in parameters if p.requires_grad]
    return next((p for p in trained if p.grad is None), trained[0] if trained else None)


def _is_cleared(parameter: Tensor | None) -> bool:
    grad = None if parameter is None else parameter.grad
    if grad is None:
        return True
    if type(grad) is not Tensor or (grad.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False  # reading a sharded gradient would be a collective
    return not bool(grad.any())


def _message(optimizer: Optimizer, k: int, scaler: Any | None) -> str:
    name = type(optimizer).__name__
    steps = f"accumulation_steps={k}"
    if scaler is None:
        return (
            f"The model went backward {k} times for one step of {name}, and VCReg was not told how "
            f"the loop scales its loss. If each loss is divided by {k}, VCReg is {k} times too "
            f"strong: call vcreg_fx.set_loss_scale(model, {steps}) before training. If the losses "
            f"are added as they are, vcreg_fx.set_loss_scale(model, 1.0) says so.{what_follows()}"
        )
    call = f"vcreg_fx.set_loss_scale(model, scaler{', ' + steps if k > 1 else ''})"
    also = f" {name} steps once for {k} backward passes, too." if k > 1 else ""
    return (
        f"The loss is multiplied by a GradScaler (by {scaler.get_scale():g} now), and VCReg was "
        f"not told of it: the gradient that it adds is that much too small.{also} Call "
        f"{call} before training.{what_follows()}"
    )
