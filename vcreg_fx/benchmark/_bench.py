"""Time training steps with each variant at the same sites, side by side in one process."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules._torch import room_to_compile

from ..gradient import product_dtype
from ..surgery import plan
from ._one_site import measure_bias, measure_scaling
from ._ranks import measure_ranks
from ._result import BenchResult, ModelResult, Row
from ._step import DTYPES, Clock, Floor, Step, begin, peak_bytes, quartiles, saved_bytes
from ._variants import IDENTITY, VARIANTS, BenchError, chosen_variants, make_variant

Time = tuple[float, float]  # of forward and of backward, in seconds
Pair = tuple[Time, Time]  # of a variant, and of identity beside it


def bench(  # noqa: PLR0913 (all by name, but two)
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    *,
    rule: str = "blocks",
    variants: Iterable[str] = VARIANTS,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    rounds: int = 9,
    compile: bool = False,  # noqa: A002 (the name of what it does)
    scaling: bool = True,
    ranks: int = 1,
    keep_memory: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Time a training step of each variant on each model (VCReg, table 8).

    Every round times each variant once, in a new order, between two steps of identity, with which
    it is compared, and the floor; the medians over rounds are reported.

    **Arguments:**

    - `models`, `inputs`: name → model and batch. The models are not changed.
    - `rule`: where.
    - `variants`: names from `VARIANTS`, or of the other regularizers, ``"DeCov"``, ``"WLD-Reg"``,
      ``"SIGReg"`` and ``"Radial-VCReg"``; identity is always among them.
    - `dtype`: ``"float32"``, ``"tf32"``, ``"bf16"`` (weights and activations), ``"amp"`` (autocast
      in bfloat16).
    - `device`: ``"cpu"`` or ``"cuda"``.
    - `rounds`: how many, after one that does not count.
    - `compile`: whether to time ``torch.compile(model)``.
    - `scaling`: whether to look at one site as well: its cost over n and d, and the estimates.
    - `ranks`: with 2 or more, also times as many processes with ``sync``, on the CPU in float32.
    - `keep_memory`: whether the process keeps memory that a step frees, on a CPU, which makes times
      vary far less. It cannot be undone in the same process.
    - `progress`: is told what is being done.

    **Raises:** `BenchError` for an unknown variant or type; what `vcreg_fx.plan` raises.
    """
    chosen = chosen_variants(variants)
    if dtype not in DTYPES:
        raise BenchError(f"There is no dtype {dtype!r}. There are {', '.join(DTYPES)}.")
    if ranks > 1 and (torch.device(device).type, dtype) != ("cpu", "float32"):
        raise BenchError("Several ranks are timed on the CPU in float32. Leave out --ranks.")
    if rounds < 1:
        raise BenchError(f"rounds={rounds} must be at least 1.")
    place = torch.device(device)
    begun = begin(place, keep_memory, dtype=dtype, rule=rule, rounds=rounds, compiled=compile)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        # The compiler gives up at the ninth compilation of one function.
        with room_to_compile(8 + len(models) * len(chosen)) if compile else nullcontext():
            found = []
            for name, model in models.items():
                one = _bench_model(
                    name, model, inputs[name], rule, chosen, dtype, place, rounds, compile, progress
                )
                if ranks > 1:
                    progress(f"{name}: {ranks} ranks")
                    how: dict[str, Any] = {"rounds": rounds, "keep_memory": keep_memory}
                    rows = measure_ranks(model, inputs[name], rule, ranks=ranks, **how)
                    one = replace(one, ranks=rows)
                found.append(one)
    finally:
        torch.set_float32_matmul_precision(precision)
    if scaling:
        progress("one site over n and d")
    growth = measure_scaling(place) if scaling else []
    bias = measure_bias() if scaling else []
    return BenchResult(*begun, found, growth, bias)


def _bench_model(
    name: str,
    model: nn.Module,
    inputs: Tensor,
    rule: str,
    chosen: Sequence[str],
    dtype: str,
    device: torch.device,
    rounds: int,
    compiled: bool,
    progress: Callable[[str], None],
) -> ModelResult:
    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    model = copy.deepcopy(model).to(device, weights).train()
    inputs = inputs.to(device, weights)
    steps = {}
    for variant in chosen:
        progress(f"{name}: {variant}")
        inner = make_variant(variant, model, rule, (inputs,))
        run: Any = torch.compile(inner) if compiled else inner
        steps[variant] = Step(variant, run, inner, inputs, dtype)
        steps[variant].run()  # warm up, and compile
    planned = plan(model, rule, example_inputs=(inputs,))
    shapes = [(site.name, site.samples, site.channels) for site in planned.sites]
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "amp"):
        factors = product_dtype(inputs)
    floor = Floor([(n, d) for _, n, d in shapes], factors, device)
    saved = {variant: saved_bytes(step) for variant, step in steps.items()}
    peaks = {variant: peak_bytes(step) for variant, step in steps.items()}
    pairs, floors = _rounds(name, steps, floor, Clock(device), rounds, progress)
    share = quartiles(
        [at / sum(own) for at, (own, _) in zip(floors, pairs[IDENTITY], strict=True)]
    )[1]
    rows = [
        _row(variant, pairs[variant], floors, saved[variant] - saved[IDENTITY],
             peaks[variant] / peaks[IDENTITY])
        for variant in chosen
    ]  # fmt: skip
    return ModelResult(
        name, len(inputs), shapes, quartiles(floors)[1], share, saved[IDENTITY], peaks[IDENTITY],
        rows,
    )  # fmt: skip


def _rounds(
    name: str,
    steps: Mapping[str, Step],
    floor: Floor,
    clock: Clock,
    rounds: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Pair]], list[float]]:
    """Time the floor and every variant once a round, in a random order; drop the first round.

    A step of identity is timed between any two, and each variant is compared with the mean of the
    two beside it, since the speed of a machine drifts within a round.
    """
    order = random.Random(0)
    pairs: dict[str, list[Pair]] = {variant: [] for variant in steps}
    floors = []
    others = [variant for variant in steps if variant != IDENTITY]
    for turn in range(rounds + 1):
        progress(f"{name}: round {turn} of {rounds}")
        floors.append(floor.timed(clock))
        before = steps[IDENTITY].timed(clock)
        pairs[IDENTITY].append((before, before))
        for variant in order.sample(others, len(others)):
            own = steps[variant].timed(clock)
            after = steps[IDENTITY].timed(clock)
            base = ((before[0] + after[0]) / 2, (before[1] + after[1]) / 2)
            pairs[variant].append((own, base))
            before = after
    return {variant: found[1:] for variant, found in pairs.items()}, floors[1:]


def _row(variant: str, pairs: list[Pair], floors: list[float], saved: int, peak: float) -> Row:
    return Row(
        variant,
        seconds=quartiles([sum(own) for own, _ in pairs])[1],
        ratio=quartiles([sum(own) / sum(base) for own, base in pairs]),
        forward=quartiles([own[0] / base[0] for own, base in pairs])[1],
        backward=quartiles([own[1] / base[1] for own, base in pairs])[1],
        floors=quartiles(
            [(sum(o) - sum(b)) / at for (o, b), at in zip(pairs, floors, strict=True)]
        ),
        saved=saved,
        peak=peak,
    )
