"""``vcreg-fx bench``: what VCReg costs on this machine, beside what else could be there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._shared.progress import Progress
from ._console import print_table, say, say_written
from ._options import folder_option, json_option, seed_option, threads_option

if TYPE_CHECKING:
    from ..benchmark import BenchResult, SitesResult

_CPU_BATCH = {"torchvision/vit_b_32": 16}
_OTHER_BATCH, _GPU_BATCH = 8, 128


def bench(  # noqa: PLR0913, PLR0917 (the options)
    models: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Models as for the other commands; torchvision/ may be left out."
        ),
    ] = "vit_b_32,convnext_tiny",
    rule: Annotated[str, typer.Option(metavar="EXPR", help="Where.")] = "blocks",
    variants: Annotated[
        str | None,
        typer.Option(metavar="NAME;…", help="Some of the table's rows, with ; between."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, help="Images; by default 128 on a GPU, 16 (ViT) or 8 on a CPU."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, tf32, bf16, or amp (autocast in bfloat16).")
    ] = "float32",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each variant.")] = 9,
    threads: Annotated[int, threads_option("Of torch, on a CPU.")] = 1,
    compile: Annotated[  # noqa: A002 (the name of the option)
        bool, typer.Option("--compile", help="Time torch.compile(model).")
    ] = False,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes to train together with sync as well, on a CPU.")
    ] = 1,
    at_sites: Annotated[
        bool,
        typer.Option(
            "--sites", help="Time what stands at the sites alone, which other work cannot drown."
        ),
    ] = False,
    keep_memory: Annotated[
        bool,
        typer.Option(help="Keep memory that a step frees, on a CPU: times vary far less."),
    ] = True,
    seed: Annotated[int, seed_option("Of weights and images.")] = 0,
    json: Annotated[Path | None, json_option("Write everything there.")] = None,
    output: Annotated[Path | None, folder_option("Write tables, numbers and pictures.")] = None,
) -> None:
    """Time training steps with VCReg and without, side by side (table 8 of the paper)."""
    # Torch's profiler, which measures the peak, warns of memory that it saw nobody allocate.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torchvision import models as torchvision

    from ..benchmark import VARIANTS, BenchError, SitesResult, bench_sites, write_results
    from ..benchmark import bench as run
    from ._model import device_of, load_model, noise_for

    device_of(device)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    ours = set(torchvision.list_models())
    names = [f"torchvision/{name}" if name in ours else name for name in models.split(",")]
    with Progress("building the models", passing=True):
        built = {name: load_model(name) for name in names}
    size = batch or (_GPU_BATCH if device.startswith("cuda") else None)
    inputs = {
        name: noise_for(
            model, size or _CPU_BATCH.get(name, _OTHER_BATCH), "vcreg_fx.benchmark.bench"
        )
        for name, model in built.items()
    }
    chosen = [name.strip() for name in variants.split(";")] if variants else list(VARIANTS)
    if at_sites and (ranks > 1 or dtype not in {"float32", "amp"}):
        raise BenchError("--sites is for one process, in float32 or amp.")
    with Progress("benchmark", passing=True) as bar:
        how: dict[str, Any] = {
            "rule": rule, "variants": chosen, "dtype": dtype, "device": device, "rounds": rounds,
            "compile": compile, "keep_memory": keep_memory,
            "progress": partial(bar.advance, steps=0),
        }  # fmt: skip
        found: BenchResult | SitesResult = (
            bench_sites(built, inputs, **how)
            if at_sites
            else run(built, inputs, ranks=ranks, **how)
        )
    written = [] if output is None else [output, write_results(found, output)]
    if json is not None:
        json.write_text(found.to_json(), "utf-8")
        written.insert(0, json)
    if isinstance(found, SitesResult):
        _print_sites(found)
    else:
        _print(found)
    say_written(*written)


def _print_sites(result: SitesResult) -> None:
    for found in result.models:
        say(
            f"{found.model}, batch {found.batch}: a step of the model itself takes "
            f"{found.step * 1e3:.0f} ms, the two products of all sites {found.floor * 1e3:.1f} ms"
        )
        _print_table(*found.table(), 4)  # without those of each kind of sites


def _print(result: BenchResult) -> None:
    for found in result.models:
        say(
            f"{found.model}, batch {found.batch}, {len(found.sites)} sites: the floor is "
            f"{found.floor * 1e3:.1f} ms, {found.floor_share:.1%} of identity's step"
        )
        _print_table(*found.table(), 8)  # without the paper's
        for of_ranks in found.ranks:
            say(
                f"ranks, {of_ranks.variant}: {of_ranks.ratio[1]:.3f} × identity, "
                f"{of_ranks.exchanges} all-reduces of {of_ranks.exchanged / 2**20:.1f} MiB"
            )
    for growth in result.scaling:
        say(
            f"one site: time ∝ {growth.varied}^{growth.exponent:.2f} for {growth.varied} from "
            f"{growth.sizes[0]:,} to {growth.sizes[-1]:,}"
        )


def _print_table(header: Sequence[str], body: list[list[str]], columns: int) -> None:
    names = header[:columns]
    print_table(names, [row[:columns] for row in body], right=names[1:])
