"""The callback for Lightning's Trainer."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from operator import attrgetter
from typing import Any

from torch import nn

from placement_rules import Rule

from .._errors import InsertionError
from ..site import live_sites, metrics
from ._follower import Follower, Schedule, missing, refuse_engine

KEY = "vcreg_fx"  # of the checkpoint: the state of each attribute


def _bases() -> tuple[type, ...]:
    """Return the callback classes of the Lightnings in use: it goes by two names."""
    names = ("lightning.pytorch", "pytorch_lightning")
    found = [sys.modules[name].Callback for name in names if name in sys.modules]
    if found:
        return tuple(found)
    for name in names:
        with suppress(ImportError):
            return (importlib.import_module(name).Callback,)
    raise missing("lightning (or pytorch_lightning)", "lightning")


class VCRegCallback(*_bases()):  # type: ignore[misc]
    """Trains with VCReg in Lightning: ``Trainer(callbacks=[VCRegCallback("blocks", alpha=0.32)])``.

    The penalty's gradient is scaled as Lightning scales the loss, by ``accumulate_grad_batches``
    and the precision plugin's scaler, so that a step gets the mean of its batches' penalties. With
    manual optimization the loop is the module's own, and so is the scale: the callback leaves it
    alone, and `vcreg_fx.set_loss_scale` sets it.

    Checkpoints keep what was inserted, the coefficients and the steps of the sites, and resuming
    restores them. After training the sites have the loss scale that they had before.

    **Arguments:**

    - `rule`: where to insert, before the optimizers are configured; None follows what was inserted
      (or what the checkpoint has that training resumes from).
    - `attribute`: the part of the module to insert into, such as ``"backbone"``. None is all of
      it, whose ``example_input_array`` serves as example input, if it has one.
    - `log`: whether to log `vcreg_fx.metrics` every ``log_every_n_steps``.
    - `schedule`: warm-up and decay of α and β: a `CoefficientSchedule`, or its arguments,
      ``{"warmup": 500, "decay": 1000}``; ``total`` is the trainer's number of steps, where it is
      not given.
    - `overrides`: further arguments of `vcreg_fx.insert`: ``alpha=0.32``, ``example_inputs=…``.

    **Raises:** `InsertionError` when training starts and there is no rule and nothing was inserted,
    and with DeepSpeed, unless with ``ratio`` or ``mode="loss"``.
    """

    def __init__(
        self,
        rule: str | Rule | None = None,
        attribute: str | None = None,
        log: bool = True,
        *,
        schedule: Schedule | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        self.attribute = attribute
        self.log_metrics = log
        self._follower = Follower(rule, schedule, overrides)
        self._logged = -1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Insert, before anything is wrapped and the optimizers are configured."""
        if stage != "fit":
            return
        examples = self._follower.overrides
        if self.attribute is None and "example_inputs" not in examples and self._follower.rule:
            given = pl_module.example_input_array
            if isinstance(given, dict):
                examples.setdefault("example_kwargs", given)
            elif given is not None:
                examples["example_inputs"] = given if isinstance(given, tuple) else (given,)
        self._follower.take(self._part(pl_module))

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on from what the checkpoint has."""
        kept = checkpoint.get(KEY, {})
        if self.attribute in kept:
            self._follower.restore(kept[self.attribute])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what was inserted."""
        if self._follower.model is not None and live_sites(self._follower.model):
            checkpoint.setdefault(KEY, {})[self.attribute] = self._follower.state()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """See that there is something to train with."""
        model = self._follower.require('VCRegCallback("blocks")')
        if "deepspeed" in type(trainer.strategy).__name__.lower():
            refuse_engine(model, "DeepSpeed")
        self._schedule(trainer)
        self._logged = trainer.global_step

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scale VCReg as the loss of this batch will be."""
        if pl_module.automatic_optimization:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._follower.scale(scaler, trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step of the optimizer, go on in the schedule and log."""
        step, model = trainer.global_step, self._follower.model
        if step == self._logged or model is None:
            return
        self._schedule(trainer)
        interval = trainer.log_every_n_steps
        due = interval and step // interval > max(self._logged, 0) // interval
        if self.log_metrics and (due or trainer.fast_dev_run) and not trainer.barebones:
            prefix = "vcreg" if self.attribute is None else f"vcreg/{self.attribute}"
            numbers = metrics(model, prefix)
            pl_module.log_dict(numbers, on_step=True, on_epoch=False, batch_size=1)
        self._logged = step

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the sites back the loss scale that they had."""
        if stage == "fit":
            self._follower.leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the sites back the loss scale that they had."""
        self._follower.leave()

    def _schedule(self, trainer: Any) -> None:
        self._follower.schedule_to(
            trainer.global_step, lambda: int(trainer.estimated_stepping_batches)
        )

    def _part(self, pl_module: nn.Module) -> nn.Module:
        if self.attribute is None:
            return pl_module
        name = type(pl_module).__name__
        try:
            part = attrgetter(self.attribute)(pl_module)
        except AttributeError:
            raise InsertionError(
                f"{name} has no attribute {self.attribute!r} before training. Where "
                "configure_model makes it, insert there, and give VCRegCallback no rule."
            ) from None
        if not isinstance(part, nn.Module):
            raise InsertionError(
                f"{name}.{self.attribute} is a {type(part).__name__}, and no torch.nn.Module."
            )
        return part
