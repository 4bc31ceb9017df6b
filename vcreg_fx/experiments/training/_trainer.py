"""The trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..._shared.progress import Progress
from ...site import named_sites
from ...surgery import get_configs, penalty, set_loss_scale, sites
from ._batches import Batches, fingerprint
from ._distributed import Processes, processes
from ._resume import Flag, Stopped, load, noticed, save
from ._settings import Average, TrainSettings, make_mixing, make_optimizer, make_schedule

Loss = Callable[[Any, Tensor], Tensor]
History = list[dict[str, float]]
_FORMAT = 4  # of checkpoints


def fit(  # noqa: PLR0913 - what a user may want to change
    model: nn.Module,
    data: Dataset[Any],
    settings: TrainSettings | None = None,
    *,
    classes: int | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    on_epoch: Callable[[nn.Module, int], Mapping[str, float] | None] | None = None,
    on_step: Callable[[float], object] | None = None,
    on_update: Callable[[int, int], object] | None = None,
    progress: bool | None = None,
) -> History:
    """Train a classifier in place, on one device or, under ``torchrun``, on several.

    With a `loss` of your own it may be any model of images: what the loss gets is what it returns.

    What `vcreg_fx.insert` put into the model acts by itself; the penalty of ``mode="loss"`` is
    added to the loss, and the scale of ``amp="float16"`` is told to VCReg.

    A SIGINT or SIGTERM stops it after the current step. Called again with the same `checkpoint`,
    it goes on after the last whole epoch and ends with the same numbers, bit for bit on the CPU.

    **Arguments:**

    - `data`: (image, label) pairs; a ``TensorDataset`` is indexed directly.
    - `settings`: by default those of `TrainSettings`.
    - `classes`: how many there are, for mixup and cutmix.
    - `loss`: of what the model returns, and labels; by default the cross-entropy of logits.
    - `seed`: of the order of the images. Augmentation draws from torch's random state.
    - `checkpoint`: a file, written after each epoch; the one before lies beside it. If it exists,
      training goes on from there. A damaged one is set aside with a warning.
    - `log`: a folder for TensorBoard, ``pip install "vcreg-fx[reproduce]"``.
    - `on_epoch`: called after each epoch with the model, which has the averaged weights where there
      are such, and the epoch, from 1; the numbers that it returns are kept in the history.
    - `on_step`: called with the loss of each step, for which a GPU has to be waited for.
    - `on_update`: called after each update of the weights with how many there have been, also
      before a checkpoint, and how many there will be: for a momentum encoder.
    - `progress`: show a progress bar; by default where the output is a terminal.

    **Returns:** the history: epoch, loss, learning rate, and the numbers of `on_epoch`.

    **Raises:** `Stopped` after a signal; `FloatingPointError` if the loss or a weight is no longer
    finite; `ValueError` if the processes cannot share a batch equally, or a checkpoint belongs to
    another model, to other settings, coefficients or sites of VCReg, or to other data.
    """
    settings = settings or TrainSettings()
    where = processes(settings.device)
    model.to(where.device)
    run = _Run(model, Batches(data, settings, where), settings, where, loss, classes)
    run.on_update = on_update
    if checkpoint is not None:
        run.identity = _identity(model, data, settings, seed)
    where.draw_apart()  # dropout and augmentation
    path = None if checkpoint is None else Path(checkpoint)
    history: History = []
    if path is not None and (state := load(path, where)) is not None:
        history = run.restore(state, path)
    shown = progress if where.leads else False
    total, done = run.epochs * run.steps, len(history) * run.steps
    with (
        noticed() as flag,
        _log(Path(log) if log and where.leads else None) as write,
        Progress("training", total, done=done, shown=shown, passing=True) as bar,
    ):

        def stepped(loss: Tensor, epoch: int) -> None:
            if on_step is not None:
                on_step(loss.item())
            bar.advance(f"epoch {epoch}/{run.epochs}")

        for epoch in range(len(history) + 1, run.epochs + 1):
            numbers = run.epoch(epoch, seed, flag, stepped)
            if on_epoch is not None:
                numbers.update(on_epoch(run.average.model, epoch) or {})
            history.append(numbers)
            write(numbers)
            bar.advance(note=f"loss {numbers['loss']:.4g}", steps=0)
            if path is not None:
                save(path, run.state(history), where)
        if number := where.any(flag.number):  # it came when the last step had been done
            raise Stopped(number)
    run.average.apply()
    return history


@contextmanager
def _log(folder: Path | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Yield what writes the numbers of an epoch for TensorBoard; without a folder, nothing."""
    if folder is None:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(numbers["epoch"]))

        yield write


class _Run:
    """A training run: what an epoch needs, and what a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        settings: TrainSettings,
        where: Processes,
        loss: Loss | None,
        classes: int | None,
    ) -> None:
        if (settings.mixup or settings.cutmix) and classes is None:
            raise ValueError("mixup and cutmix need to know how many classes there are: classes=…")
        self._model, self._batches, self._settings, self._where = model, batches, settings, where
        self.identity: dict[str, Any] = {}  # what has to be the same where a run goes on
        self.on_update: Callable[[int, int], object] | None = None
        self.steps = batches.steps
        self.epochs = 1 if settings.steps else settings.epochs
        self._parallel = where.wrap(model)
        self._optimizer = make_optimizer(model, settings)
        self._schedule = make_schedule(self._optimizer, self.epochs * self.steps, settings)
        self._mix = make_mixing(settings, classes or 0)
        self._loss = loss or nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self.average = Average(model, settings, self.epochs * self.steps)
        self._scaler = torch.amp.GradScaler(where.device.type, enabled=settings.amp == "float16")
        found = sites(model)
        self._adds_penalty = any(site.config.mode == "loss" for site in found)
        if self._scaler.is_enabled() and any(s.config.mode == "gradient" for s in found):
            set_loss_scale(model, self._scaler)

    def epoch(
        self, epoch: int, seed: int, flag: Flag, stepped: Callable[[Tensor, int], None]
    ) -> dict[str, float]:
        """Train for one epoch and return its numbers."""
        total = torch.zeros((), device=self._where.device)
        self._model.train()
        for i, (images, labels) in enumerate(self._batches.epoch(seed, epoch)):
            rate = float(self._optimizer.param_groups[0]["lr"])
            loss = self._step(images, labels)
            self._schedule.step()
            total += loss
            done = (epoch - 1) * self.steps + i
            if self.on_update is not None:
                self.on_update(done + 1, self.epochs * self.steps)
            self.average.update(done)
            stepped(loss, epoch)
            if number := self._where.any(flag.number):
                raise Stopped(number)
        mean = self._where.mean(total / self.steps)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"The loss of epoch {epoch} is {mean}: training has diverged. A smaller learning "
                "rate or smaller α and β may help."
            )
        for name, weight in self._model.named_parameters():
            if not weight.isfinite().all():
                raise FloatingPointError(
                    f"After epoch {epoch}, {name} is not finite: training has diverged. A smaller "
                    "learning rate or smaller α and β may help."
                )
        return {"epoch": float(epoch), "loss": mean, "learning_rate": rate}

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        settings, device = self._settings, self._where.device
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        self._optimizer.zero_grad()
        dtype = torch.float16 if settings.amp == "float16" else torch.bfloat16
        with torch.autocast(device.type, dtype=dtype, enabled=settings.amp != "none"):
            loss = self._loss(self._parallel(images), labels)
        if self._adds_penalty:
            loss = loss + penalty(self._model)
        self._scaler.scale(loss).backward()
        if settings.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def state(self, history: History) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "format": _FORMAT,
            "identity": self.identity,
            "history": history,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self.average.state_dict(),
            "steps": {name: site.step for name, site in named_sites(self._model)},
        }

    def restore(self, state: dict[str, Any], path: Path) -> History:
        """Take over a checkpoint and return its history."""
        if (found := state.get("format", 0)) != _FORMAT:
            raise ValueError(
                f"{path} was written by {'an earlier' if found < _FORMAT else 'a newer'} version. "
                "Remove it to begin again."
            )
        before, now = state["identity"], self.identity
        if other := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            raise ValueError(
                f"{path} belongs to a run in which {', '.join(other)} had other values. Remove it, "
                "or choose another file."
            )
        try:
            self._model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"{path} belongs to another model: {error}") from error
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state["average"])
        for name, site in named_sites(self._model):
            site.step = state["steps"][name]
        history: History = state["history"]
        return history


def _named(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _identity(
    model: nn.Module, data: Dataset[Any], settings: TrainSettings, seed: int
) -> dict[str, Any]:
    """Return what has to be the same where a run goes on, by the names that an error says."""
    free = {"device", "workers"}
    return {
        **{name: value for name, value in settings.to_dict().items() if name not in free},
        "the seed": seed,
        "what is inserted": json.dumps(get_configs(model), default=_named),
        "the number of images": len(data),  # type: ignore[arg-type]
        "the images": fingerprint(data),
    }
