"""The callback for the Trainer of transformers."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from placement_rules import Rule

from .._errors import InsertionError
from ..site import metrics, unwrapped
from ..surgery import sites
from ._follower import Follower, Schedule, missing, read_state, refuse_engine, write_state

try:
    from transformers import TrainerCallback
except ImportError:
    raise missing("transformers", "transformers") from None

_NEAR = 12  # a trainer calls its callbacks directly, through their handler


class VCRegCallback(TrainerCallback):  # type: ignore[misc]
    """Trains with VCReg in transformers: ``Trainer(…, callbacks=[VCRegCallback("blocks")])``.

    The Trainer divides its loss in different ways, by version and by model: by the number of a
    step's batches, or, for models that are told ``num_items_in_batch``, by that of their labels. In
    all of them a step gets the mean of its batches' penalties, times the scale of its scaler.

    Into each checkpoint it writes ``vcreg_fx.json``, from which `restore` gives a model of
    ``from_pretrained`` its sites back; and into ``output_dir`` at the end, for ``save_model``.
    Resuming restores the coefficients and the steps of the sites. After training the sites have the
    loss scale that they had before.

    **Arguments:**

    - `rule`: where to insert, when the Trainer is made; None follows what was inserted.
    - `log`: whether to log `vcreg_fx.metrics` whenever the Trainer logs.
    - `schedule`: warm-up and decay of α and β: a `CoefficientSchedule`, or its arguments,
      ``{"warmup": 500, "decay": 1000}``; ``total`` is the Trainer's number of steps, where it is
      not given.
    - `overrides`: further arguments of `vcreg_fx.insert`: ``alpha=0.32``, ``example_inputs=…``.

    **Raises:** `InsertionError` when training starts and there is no rule and nothing was inserted;
    with DeepSpeed, unless with ``ratio`` or ``mode="loss"``; and where one process trains on
    several devices by ``DataParallel``.
    """

    def __init__(
        self,
        rule: str | Rule | None = None,
        *,
        log: bool = True,
        schedule: Schedule | None = None,
        **overrides: Any,
    ) -> None:
        self.log_metrics = log
        self._follower = Follower(rule, schedule, overrides)

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Insert, when the Trainer has just been made."""
        if model is not None:
            self._follower.take(unwrapped(model))

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Insert where the model is a new one, and go on from a checkpoint."""
        assert model is not None
        late = self._follower.model is None
        if self._follower.take(unwrapped(model)) and late:
            warnings.warn(
                "VCRegCallback was added after the Trainer was made, so that VCReg was inserted "
                "only now, at the beginning of training, into the model as it is prepared for "
                "that. Pass it to the Trainer: Trainer(…, callbacks=[VCRegCallback(…)]).",
                stacklevel=2,
            )
        checkpoint = _trainer()[1].get("resume_from_checkpoint") if state.global_step else None
        if checkpoint is not None:
            try:
                self._follower.restore(read_state(Path(checkpoint)))
            except FileNotFoundError as error:
                warnings.warn(f"{error} Training goes on with what is inserted now.", stacklevel=2)
        inserted = self._follower.require('VCRegCallback("blocks")')
        if args.n_gpu > 1:
            raise InsertionError(
                f"The Trainer would train on {args.n_gpu} devices in one process, by DataParallel, "
                "where VCReg is not known to be right. Start one process a device (torchrun), or "
                "show it one device (CUDA_VISIBLE_DEVICES=0)."
            )
        if getattr(args, "deepspeed", None) is not None:
            refuse_engine(inserted, "DeepSpeed")
        self._schedule(state)

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Scale VCReg as the batches of this step will be."""
        self._follower.scale(getattr(optimizer, "scaler", None), _batches_of_step(args))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on in the schedule, and log."""
        model = self._follower.model
        if model is None:
            return
        self._schedule(state)
        trainer = _trainer()[0]
        if self.log_metrics and control.should_log and trainer is not None:
            trainer.log(metrics(model))
            control.should_log = True  # logging clears it, and the Trainer's own is to follow

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write ``vcreg_fx.json`` into the checkpoint."""
        name, folder = f"checkpoint-{state.global_step}", Path(args.output_dir)
        written = [folder / name]
        if state.is_hyper_param_search:  # each trial has a folder of its own
            written += sorted(folder.glob(f"run-*/{name}"), key=lambda path: path.stat().st_mtime)
        self._write(state, written[-1])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the sites back the loss scale that they had."""
        self._write(state, Path(args.output_dir))
        self._follower.leave()

    def _write(self, state: Any, folder: Path) -> None:
        model = self._follower.model
        if state.is_world_process_zero and model is not None and sites(model):
            write_state(folder, self._follower.state(buffers=True))

    def _schedule(self, state: Any) -> None:
        self._follower.schedule_to(state.global_step, lambda: int(state.max_steps))


def _trainer() -> tuple[Any | None, dict[str, Any]]:
    """Return the trainer that is calling, which callbacks are not given, and its local names."""
    frame = sys._getframe(1)
    for _ in range(_NEAR):
        if frame.f_back is None:
            break
        frame = frame.f_back
        found = frame.f_locals.get("self")
        if hasattr(found, "callback_handler") and hasattr(found, "training_step"):
            return found, frame.f_locals
    return None, {}


def _batches_of_step(args: Any) -> int:
    """Return by how many batches the Trainer divides in this step: the last may have fewer.

    Older versions (4.52 among them) divide by `gradient_accumulation_steps` then, too, except where
    the model is told the number of labels in the batches that there are.
    """
    trainer, local = _trainer()
    steps = getattr(trainer, "current_gradient_accumulation_steps", None)
    if steps is None and local.get("num_items_in_batch") is not None:
        steps = len(local.get("batch_samples") or ()) or None
    return int(steps or args.gradient_accumulation_steps)
