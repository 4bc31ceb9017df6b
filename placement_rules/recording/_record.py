"""Record a model's forward pass on fake tensors, or for real where fake ones fail."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from .._errors import ExampleInputsError, RecordingError
from .._torch import FAKE_LOGGER, FakeCopyMode, FakeTensorMode, compiled_parts_eager, tree_map
from ._fast import Results, copy_model
from ._inputs import Inputs, candidate_inputs, other_sizes
from ._pass import Pass, TrainingPass
from ._recorder import Recorder
from ._recording import Recording

Prepare = Callable[[nn.Module], None]
Run = Callable[[nn.Module, Inputs, Prepare], Recording]
Watch = TypeVar("Watch", bound=Pass)
_LOCK = threading.RLock()  # a fake mode sets a switch for all threads, and sets it back


def record(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    prepare: Prepare = lambda _: None,
) -> Recording:
    """Record one forward pass of ``model`` in eval mode, on a copy, without touching the model.

    The pass runs on fake tensors (no arithmetic, no memory, random state untouched); where the
    model cannot run on those (it reads values, or has a kernel without a fake form), a real pass
    runs on a real copy.

    **Arguments:**

    - `model`: any module; parameters may lie on the meta device.
    - `example_inputs`, `example_kwargs`: arguments for one forward call. By default they are
      worked out from the model.
    - `prepare`: changes the copy of the model before it runs.

    **Returns:** the `Recording`.

    **Raises:** `ExampleInputsError` if no input was given and none could be worked out;
    `RecordingError` if the forward pass fails.
    """
    _check_parameters(model)
    given = example_inputs is not None or example_kwargs is not None
    if given:
        single = isinstance(example_inputs, torch.Tensor)
        args = (example_inputs,) if single else tuple(example_inputs or ())
        candidates = [Inputs(args, dict(example_kwargs or {}), "the given inputs")]
    else:
        candidates = list(candidate_inputs(model))
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    failures: list[tuple[Inputs, Exception]] = []
    for run in (_record_fake,) if on_meta else (_record_fake, _record_real):
        failures.clear()
        for inputs in candidates:
            try:
                return _recorded(run, model, inputs, prepare)
            except Exception as error:
                failures.append((inputs, error))
    name = type(model).__name__
    said = [f"{inputs.origin}: {type(error).__name__}: {error}" for inputs, error in failures]
    if given and on_meta:
        raise RecordingError(
            f"Recording {name} on fake tensors failed, and its parameters on the meta device rule "
            f"out a real pass: {failures[0][1]}"
        ) from failures[0][1]
    if given:
        raise RecordingError(f"The forward pass of {name} failed on {said[0]}") from failures[0][1]
    if failures:
        raise ExampleInputsError(
            f"{name} did not run on any input worked out for it:\n"
            + "".join(f"  {line}\n" for line in said)
            + "Pass example_inputs=(tensor, …), and example_kwargs={…} if the forward needs them."
        )
    raise ExampleInputsError(
        f"No example input can be worked out for {name}: it has no timm pretrained_cfg, no "
        "transformers config, and no convolution, linear or embedding layer that shows what it "
        "takes. Pass example_inputs=(tensor, …)."
    )


def _recorded(run: Run, model: nn.Module, inputs: Inputs, prepare: Prepare) -> Recording:
    """Record a pass, in a way that can be repeated on inputs of other sizes."""

    def run_again() -> Iterator[Recording]:
        for other in other_sizes(inputs):
            with contextlib.suppress(Exception):  # the model does not take them
                again = run(model, other, prepare)
                again.run_training = lambda: None  # which would keep the copied model
                yield again

    recording = run(model, inputs, prepare)
    recording.run_again = run_again
    return recording


def _record_fake(model: nn.Module, inputs: Inputs, prepare: Prepare) -> Recording:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        duplicate = copy_model(model, fake.from_tensor)
    prepare(duplicate)
    results = Results()

    def to_fake(value: Any) -> Any:
        return fake.from_tensor(value) if isinstance(value, torch.Tensor) else value

    def call(kind: type[Watch]) -> Watch:
        with _LOCK, keeping_randomness(), fake, quiet():
            args, kwargs = tree_map(to_fake, (inputs.args, inputs.kwargs))
            return _call(kind(model, duplicate, results), args, kwargs)

    def run_training() -> TrainingPass | None:
        try:
            return call(TrainingPass)
        except Exception:  # it reads random numbers, say, which exist without fake tensors only
            return _train_without_data(model, inputs, prepare)

    recording = call(Recorder).recording
    recording.run_training = run_training
    return recording


def _train_without_data(model: nn.Module, inputs: Inputs, prepare: Prepare) -> TrainingPass | None:
    """Run a pass in train mode where only the model and its inputs are without data."""
    try:
        duplicate = copy_model(model, _without_data)
        prepare(duplicate)
        args, kwargs = tree_map(_without_data, (inputs.args, inputs.kwargs))
        with keeping_randomness():
            return _call(TrainingPass(model, duplicate, Results()), args, kwargs)
    except Exception:  # whatever a forward may raise: what runs then says so at the first step
        return None


def _record_real(model: nn.Module, inputs: Inputs, prepare: Prepare) -> Recording:
    duplicate = copy_model(model)
    prepare(duplicate)
    args, kwargs = copy.deepcopy((inputs.args, inputs.kwargs))
    with keeping_randomness():
        recording = _call(Recorder(model, duplicate, Results()), args, kwargs).recording
    for scope in recording.scopes:
        scope.args, scope.kwargs = tree_map(_without_data, (scope.args, scope.kwargs))
    for graph in [recording.flat, *(scope.graph for scope in recording.scopes)]:
        for node in graph.nodes:
            node.meta["val"] = tree_map(_without_data, node.meta.get("val"))
    return recording


def _without_data(item: Any) -> Any:
    """Return a tensor of the same shape, strides and type that holds no data, for a tensor."""
    if not isinstance(item, torch.Tensor):
        return item
    shape = tuple(item.shape)
    empty = torch.empty_strided(shape, item.stride(), dtype=item.dtype, device="meta")
    return nn.Parameter(empty, item.requires_grad) if isinstance(item, nn.Parameter) else empty


def _call(watch: Watch, args: Any, kwargs: Any) -> Watch:
    """Run the forward pass of the copied model under watch, and let go of the copy."""
    # Under a function mode, as the pass is, torch's transformer layers take no fused ways.
    try:
        with torch.no_grad(), compiled_parts_eager(), watch:
            watch.copy(*args, **kwargs)
    finally:
        watch.end()
    return watch


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise RecordingError(
                f"{name} is lazy: its shape is not known yet. Run the model once on real data, "
                "then insert."
            )


# What a pass leaves as it was around it, and other threads do not notice ---------------------

# Held while Python makes objects of a syntax tree, or compiles them: releases such as 3.11.7 count
# how deep they are for all threads at once, and fail where another's turn comes in the middle.
SYNTAX_TREES = threading.RLock()


@contextmanager
def keeping_randomness() -> Iterator[None]:
    """Undo what is drawn of the random numbers of torch, NumPy and Python, in a single thread.

    Where other threads run they draw from the same generators. To go back would give them numbers
    twice, so that the generators stay where they are.
    """
    numpy = sys.modules.get("numpy")
    keepers: list[tuple[Any, Any]] = [
        (random.getstate, random.setstate),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if numpy is not None:
        keepers.append((numpy.random.get_state, numpy.random.set_state))
    if torch.cuda.is_initialized():
        keepers.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    before = [state() for state, _ in keepers]
    try:
        yield
    finally:
        if threading.active_count() == 1:
            for (_, restore), state in zip(keepers, before, strict=True):
                restore(state)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging a traceback for every input that a model turns out not to take."""
    here = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger = logging.getLogger(FAKE_LOGGER)
    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)
