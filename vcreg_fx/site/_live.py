"""An inserted site, live: its coefficients can be set, its last numbers read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from placement_rules import Layout, LayoutError
from placement_rules._torch import (
    has_saved_tensor_hooks,
    in_backward,
    in_jit_trace,
    is_exporting,
    mark_constant,
    under_func_transform,
)

from ..gradient import (
    Calls,
    GroupSum,
    InjectGradient,
    Moments,
    Numbers,
    Penalize,
    Penalty,
    Settings,
    VCRegConfig,
    autocast_enabled,
    autocast_off,
    check_coefficient,
    exported_vcreg,
    group_of,
    inject_gradient_at,
    naive_penalty,
    present_sum,
    product_dtype,
    reference_mean,
    refuse_batches,
    start_moments,
    working_dtype,
)
from ._calling import outside_torch, what_follows
from ._loss_scale import LossScale
from ._passes import Passes
from ._positions import Positions
from ._steps import FORGOTTEN, StepWatch

_UNREAD = 64  # the most penalties that a site keeps for the next read
_COMPILED_UNREAD = 4  # with how many a compiled site says what it costs to keep them


class LiveSite:
    """A site of a model into which VCReg was inserted.

    **Attributes:**

    - `name`, `path`, `position`, `layout`, `channels`: as in the plan.
    - `config`: the `VCRegConfig` it was inserted with.
    - `alpha`, `beta`: the coefficients now; assign to change them from the next step on.
    - `penalty`, `variance_loss`, `covariance_loss`: numbers of the last training step, None before
      the first. Reading them waits for the device.
    - `std`: √(C_ii + ε) of each feature in that step, shape (d,).
    - `step`: with `interval` or `sample`, the backward passes so far.
    - `numbers`: what these are read from, as it lies on the device.
    """

    def __init__(
        self,
        name: str,
        path: str,
        position: str,
        layout: Layout,
        channels: int,
        config: VCRegConfig,
        clone: bool,
        penalize: Penalize | None = None,
    ) -> None:
        self.channels = channels
        self.config = config
        self.penalize = penalize
        self.numbers = Numbers(channels, config, other=penalize is not None)
        self._now = (float(config.alpha), float(config.beta))
        # The same for compiled code, which would freeze numbers.
        self._alpha = torch.tensor(config.alpha, dtype=torch.float64, device="cpu")
        self._beta = torch.tensor(config.beta, dtype=torch.float64, device="cpu")
        self._step = torch.zeros((), dtype=torch.int64, device="cpu")
        self.name = name
        self.path = path
        self.position = position
        self.layout = layout
        self.loss_scale: LossScale | None = None
        self.steps: StepWatch | None = None  # where the passes of an untold loop are counted
        self.passes = Passes()
        self.probe: Callable[[Tensor, Tensor | None], None] | None = None  # notes, and does no more
        self.positions: Positions | None = None  # says which are no samples, where not all are
        self._clone = clone
        seed = torch.initial_seed() if config.sync is False else 0  # ranks act in the same steps
        self._key = f"{name}:{seed}"
        self._warned: set[str] = set()
        self._settings = self._make_settings()

    @property
    def clones(self) -> bool:
        """Whether the site returns a copy, because what follows writes to it."""
        return self._clone

    def __repr__(self) -> str:
        """Name the site and its coefficients."""
        return f"{self.name} ({self.layout}, d={self.channels}, α={self.alpha:g}, β={self.beta:g})"

    @property
    def alpha(self) -> float:
        """The weight of the variance loss."""
        return self._now[0]

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._now = (check_coefficient("alpha", value), self._now[1])
        self._alpha.fill_(value)

    @property
    def beta(self) -> float:
        """The weight of the covariance loss."""
        return self._now[1]

    @beta.setter
    def beta(self, value: float) -> None:
        self._now = (self._now[0], check_coefficient("beta", value))
        self._beta.fill_(value)

    @property
    def step(self) -> int:
        """How many backward passes an estimated site has seen, from which its draws follow.

        Assign what a checkpoint noted, to go on with the same draws.
        """
        return int(self._step)

    @step.setter
    def step(self, value: int) -> None:
        self._step.fill_(value)

    @property
    def variance_loss(self) -> float | None:
        """ℓ_var of the last step (Eq. 3); zero for less than two samples."""
        return self.numbers.variance_loss

    @property
    def covariance_loss(self) -> float | None:
        """ℓ_cov of the last step (Eq. 4, or Eq. 10 if δ is given); None for a competitor."""
        return self.numbers.covariance_loss

    @property
    def penalty(self) -> float | None:
        """α ℓ_var + β ℓ_cov of the last step (Eq. 5); α times a competitor's value."""
        if (loss := self.numbers.loss) is not None and self.penalize is not None:
            return self.alpha * float(loss)
        variance, covariance = self.variance_loss, self.covariance_loss
        if variance is None or covariance is None:
            return None
        return self.alpha * variance + self.beta * covariance

    @property
    def std(self) -> Tensor | None:
        """√(C_ii + ε) of each feature in the last step, shape (d,)."""
        return self.numbers.std

    @property
    def samples(self) -> int | None:
        """How many samples the last step had (n)."""
        return self.numbers.samples

    @property
    def factor(self) -> float | None:
        """What the penalty's gradient was multiplied by in the last step: 1 without `ratio`."""
        return self.numbers.factor

    # What the demean and vcreg nodes call --------------------------------------------------

    def active(self, h: Tensor, training: bool) -> bool:
        """Whether anything is to be done: in training, where a gradient will be computed."""
        exporting = is_exporting()
        if training and torch.is_grad_enabled():
            refuse_batches(self.name)
        if torch.compiler.is_compiling() and not exporting:
            _note_compiled(self)
        if not training or not (exporting or (torch.is_grad_enabled() and h.requires_grad)):
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self.passes.rested = "frozen" if training else "eval"
            return False
        if h.ndim != self.layout.ndim:
            raise LayoutError(
                f"{self.name} was planned as {self.layout} and now gets a tensor of shape "
                f"{tuple(h.shape)}. Insert with example_inputs= of the shape that you train on."
            )
        if exporting:  # the program will be called with any number of samples
            return True
        if h.numel() < 2 * h.shape[self.layout.axis] and self.group is None:
            self._warn_of_few(f"one sample (shape {tuple(h.shape)})")
            return False
        absent = None if torch.compiler.is_compiling() or self.group else self.absent(h)
        if absent is not None and not absent.is_cuda and int((~absent).sum()) < 2:
            self._warn_of_few(f"{absent.numel()} positions with less than two samples")
        return True  # every rank joins a collective, also with one sample

    def absent(self, h: Tensor) -> Tensor | None:
        """Return true where a position is no sample, of the shape of `h` without its channels.

        None where every position is one.
        """
        return None if self.positions is None else self.positions.absent(h)

    def _warn_of_few(self, what: str) -> None:
        self._warn_once(
            f"{self.name} got {what}: its features have no variance, so there is no penalty. Use "
            "batches of at least two."
        )

    def reference_mean(self, h: Tensor) -> Tensor | None:
        """Return a vector near the batch mean, shape (d,), in float32 or float64.

        None where it may not be needed: estimates find it in the steps that are due.
        """
        if self.config.estimates:
            return None
        return reference_mean(h, self.layout.axis, self.absent(h))

    def demeaned(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the activation less its mean, and the mean, shape (d,); differentiable.

        Positions that are no samples stay as they are. The third is how many there are, where they
        were counted; without any the mean is zero.
        """
        absent, count = self.absent(h), None
        if absent is None and self.group is None:
            mean = h.mean(self.layout.sample_axes)
        else:
            mean, count = self._counted_mean(h, absent)
        return self.less(h, mean, absent), mean.detach(), count

    def less(self, h: Tensor, mean: Tensor, absent: Tensor | None) -> Tensor:
        """Return the activation less a vector, shape (d,), where its positions are samples."""
        shape = [1] * h.ndim
        shape[self.layout.axis] = -1
        z = h - mean.view(shape)
        return z if absent is None else torch.where(absent.unsqueeze(self.layout.axis), h, z)

    @property
    def group(self) -> Any:
        """The process group over which statistics are taken, if any."""
        return None if self.probe is not None else group_of(self.config.sync)

    def _counted_mean(self, h: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
        if absent is None:
            total = h.sum(self.layout.sample_axes, dtype=working_dtype(h))
            count = total.new_full((1,), h.numel() // total.numel())
        else:
            total = present_sum(h, self.layout.axis, absent)
            count = (~absent).sum().view(1).to(total.dtype)
        summed = torch.cat([total, count])
        if self.group is not None:
            summed = GroupSum.apply(summed, self.group)
        count = summed[-1].detach()
        return (summed[:-1] / count.clamp_min(1)).to(h.dtype), count

    def regularize(self, h: Tensor, reference: Tensor | None) -> Tensor:
        """Return the activation, with the penalty attached in the way `mode` says."""
        if self.probe is not None:
            if not in_backward():  # where checkpointing runs forward again
                self.probe(h, self.absent(h))
            return h.clone() if self._clone else h
        if not torch.compiler.is_compiling():
            self._look_back(h)
        if in_jit_trace():
            raise RuntimeError(
                f"torch.jit.trace in train mode would lose the gradient of {self.name} without a "
                "word. Trace in eval mode, where VCReg does nothing: model.eval()."
            )
        if self.config.mode == "gradient":
            self._check_half(h)
            self._check_calls()
        scale = self._scale()
        absent = self.absent(h)
        if absent is not None:
            self._check_absent()
        if is_exporting():
            if self.penalize is not None:
                raise RuntimeError(
                    f"{self.name} has a regularizer other than VCReg, for which exported programs "
                    "have no operator. Export in eval mode: model.eval()."
                )
            return exported_vcreg(
                self.name, h, reference, self._alpha, self._beta, scale, self.layout, self.config
            )
        if self.config.mode == "gradient":
            dtype = product_dtype(h)
            step = self._step if self.config.estimates else None
            started = (
                None if step is not None else self._start_exchange(h, reference, dtype, absent)
            )
            compiling = torch.compiler.is_compiling()
            alpha, beta = (self._alpha, self._beta) if compiling else self._now
            how = (alpha, beta, scale, step, self._settings, dtype, started)
            inject = InjectGradient if compiling else self._inject
            result: Tensor = inject.apply(h, reference, absent, *how)
            return result
        if self.config.backend == "naive":
            penalty, statistics = naive_penalty(h, self._alpha, self._beta, self._settings, absent)
            self.numbers.record(statistics)
        else:
            given = (self._alpha, self._beta, self._settings, product_dtype(h))
            penalty = Penalty.apply(h, reference, absent, *given)[0]
        if in_backward():
            self._check_recomputation()
            return h.clone() if self._clone else h  # its penalty was counted in forward
        self._keep(penalty)
        return h.clone() if self._clone else h

    @cached_property
    def _inject(self) -> type[InjectGradient]:
        return inject_gradient_at(self.name)

    @property
    def has_acted(self) -> bool:
        """Whether a training step has left its numbers."""
        return self.numbers.has_any

    @property
    def needs_scale(self) -> bool:
        """Whether the site adds a gradient without knowing how the loop scales its loss."""
        config = self.config
        return self.loss_scale is None and config.ratio is None and config.mode == "gradient"

    def _scale(self) -> Tensor | None:
        """Return the loss scale; with ``ratio`` the gradient that arrives carries it."""
        if self.loss_scale is None or self.config.ratio is not None:
            return None
        return self.loss_scale.read()

    def _keep(self, penalty: Tensor) -> None:
        """Keep a penalty until it is read."""
        pending = self.passes.pending
        if torch.compiler.is_compiling():
            if len(pending) == _COMPILED_UNREAD:
                _tell_of_compilations(self)
            pending.append(penalty)
        else:
            self.passes.keep(penalty)
            if self.positions is not None:
                self.positions.look_back(penalty)
        if len(pending) > _UNREAD:
            del pending[0]
            self._warn_once(
                f"{self.name} was passed {_UNREAD} times since its penalties were last read; older "
                "ones are dropped. Add them to the loss of each step, loss + "
                'vcreg_fx.penalty(model), or insert with mode="gradient".'
            )

    def _look_back(self, h: Tensor) -> None:
        """Say what went wrong in the step before, and watch this one."""
        if in_backward() or under_func_transform():
            return
        passes = self.passes
        if passes.forget_unread():
            self._warn_once(f"{self.name}: {FORGOTTEN}")
        if passes.came_back and not passes.injected and self.config.mode == "gradient":
            self._warn_once(
                f"{self.name} received a gradient, but not through what the site returned, so that "
                "VCReg has done nothing there: what follows reads the tensor from another place "
                "(an object that the module changed in place, or a tensor it kept). Use a rule "
                "that selects the input of the module that reads it."
            )
        passes.forward(h)
        if self.steps is not None:
            self.steps.forwarded = True

    def _start_exchange(
        self, h: Tensor, reference: Tensor | None, dtype: torch.dtype, absent: Tensor | None
    ) -> Callable[[], Moments] | None:
        """Start, in forward, the ranks' exchange, which backward then need not wait for.

        Not where checkpointing runs forward again: backward has those results, or computes them.
        """
        if self.config.backend == "naive" or self.group is None:
            return None
        if torch.compiler.is_compiling() or in_backward():
            return None
        with torch.no_grad(), autocast_off(h):
            return start_moments(h, self.layout.axis, reference, self.config, dtype, absent)

    # ---------------------------------------------------------------------------------------

    def _check_absent(self) -> None:
        """Refuse what cannot be done where some positions are no samples."""
        if is_exporting():
            raise RuntimeError(
                f"{self.name} leaves positions out (mask= or skip_tokens=), which an exported "
                "training program cannot. Export in eval mode: model.eval(); or insert with "
                "mask=None and skip_tokens=0, where every position is to count."
            )
        if torch.compiler.is_compiling() and self.config.backend == "naive":
            raise RuntimeError(
                f"{self.name} leaves positions out (mask= or skip_tokens=), whose number the "
                'compiler does not know, and backend="naive" (and regularizers other than VCReg) '
                'take only those that are left. Insert with backend="fast", or do not compile.'
            )

    def _check_calls(self) -> None:
        """Refuse to count calls where they cannot be."""
        if self.config.calls == "mean" and torch.compiler.is_compiling():
            raise RuntimeError(
                f'{self.name} has calls="mean", and compiled code does not know how many calls '
                'take part in a backward pass. Insert with mode="loss", whose penalties '
                'vcreg_fx.penalty averages, or with calls="sum"; or do not compile.'
            )

    def _check_half(self, h: Tensor) -> None:
        if self.loss_scale is not None or self.config.ratio is not None:
            return
        device = h.device.type
        if h.dtype == torch.float16 or (
            autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        ):
            raise RuntimeError(
                f"{self.name} is trained in float16, where the loss is usually scaled, and the "
                "gradient that VCReg adds must be scaled with it. Call "
                "vcreg_fx.set_loss_scale(model, scaler) with your GradScaler (or with 1.0 if the "
                f"loss is not scaled).{what_follows()} With ratio= no scale is needed; with "
                'mode="loss" neither, but each step has to add vcreg_fx.penalty(model) to its loss.'
            )

    def _check_recomputation(self) -> None:
        """Non-reentrant checkpointing recomputes under hooks of its own; reentrant does not."""
        if not has_saved_tensor_hooks():
            raise RuntimeError(
                f"{self.name} lies in a part of the model under reentrant activation "
                'checkpointing, whose forward runs without gradients, so that mode="loss" cannot '
                'see the penalty. Use use_reentrant=False, or insert with mode="gradient".'
            )

    def _warn_once(self, message: str) -> None:
        if message[:60] not in self._warned and not torch.compiler.is_compiling():
            self._warned.add(message[:60])
            warnings.warn(message, stacklevel=outside_torch())

    def _note_injection(self) -> None:
        self.passes.injected = True
        if self.steps is not None and self.needs_scale:
            self.steps.went_back()

    def _make_settings(self) -> Settings:
        how = (self._clone, self.numbers, self.penalize, self._key, self.name, self._note_injection)
        counted = self.config.calls == "mean" and self.config.mode == "gradient"
        return Settings(self.layout, self.config, *how, Calls() if counted else None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a step in flight."""
        state = {**self.__dict__, "probe": None, "steps": None}
        del state["_settings"]
        state.pop("_inject", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or loaded site."""
        self.__dict__.update(state)
        self._settings = self._make_settings()


def _tell_of_compilations(site: LiveSite) -> None:
    """Say, while a compiled forward is traced, that the number of unread penalties is why."""
    warnings.warn(
        f"{site.name} was passed {_COMPILED_UNREAD} times in compiled code since its penalties "
        "were last read, which compiles the model anew for each number of them. Read them in each "
        'step: loss + vcreg_fx.penalty(model). Or insert with mode="gradient".',
        stacklevel=2,
    )


def _note_compiled(site: LiveSite) -> None:
    """Note, while a forward is traced, that what passes the site will not be seen."""
    site.passes.unseen = True


mark_constant(_tell_of_compilations)
mark_constant(_note_compiled)
