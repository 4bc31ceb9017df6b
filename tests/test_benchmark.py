"""The benchmark: what it times is what it says, and what it writes can be read."""

from __future__ import annotations

import copy
import functools
import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

import vcreg_fx
from placement_rules import Layout
from tests.models import relative_error
from vcreg_fx import VCRegConfig
from vcreg_fx.benchmark import VARIANTS, BenchError, BenchResult, Row, bench, bench_sites
from vcreg_fx.benchmark._one_site import fit_exponent
from vcreg_fx.benchmark._result import ModelResult
from vcreg_fx.benchmark._sites import site_kinds
from vcreg_fx.benchmark._step import Clock, Floor, Step, peak_bytes, quartiles, saved_bytes
from vcreg_fx.benchmark._variants import batch_norm, make_variant, printed
from vcreg_fx.cli._app import app
from vcreg_fx.site._live import LiveSite


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.linear(x))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), Residual(), Residual(), nn.Linear(16, 4))


def step(model: nn.Module, x: torch.Tensor) -> Step:
    return Step("identity", model, model, x, "float32")


def test_every_variant_on_a_small_model() -> None:
    torch.manual_seed(0)
    told: list[str] = []
    result = bench(
        {"small": small()}, {"small": torch.randn(600, 8)}, rounds=2, scaling=False,
        progress=told.append,
    )  # fmt: skip
    (found,) = result.models
    assert [row.variant for row in found.rows] == list(VARIANTS)
    assert [(n, d) for _, n, d in found.sites] == [(600, 16), (600, 16)]
    identity, *others = found.rows
    assert identity.ratio == (1, 1, 1) and identity.saved == 0 and identity.peak == 1
    assert all(row.seconds > 0 and row.ratio[1] > 0 for row in others)
    assert {"small: round 2 of 2", "small: naive"} <= set(told)
    text = result.to_markdown()
    assert all(f"| {name} |" in text for name in VARIANTS)
    assert json.loads(result.to_json())["models"][0]["rows"][0]["variant"] == "identity"


def test_the_models_are_not_changed() -> None:
    model = small().eval()
    x = torch.randn(64, 8)
    bench({"small": model}, {"small": x}, variants=["ours"], dtype="bf16", rounds=1, scaling=False)
    assert not model.training and not vcreg_fx.sites(model)
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def test_variants_share_their_weights_and_compute_what_they_say() -> None:
    torch.manual_seed(0)
    model, x = small().double(), torch.randn(300, 8, dtype=torch.float64)

    def gradients(name: str) -> list[torch.Tensor]:
        variant = make_variant(name, model, "blocks", (x,))
        for own, shared in zip(variant.parameters(), model.parameters(), strict=True):
            assert own is shared
        one = Step(name, variant, variant, x, "float32")
        one.forward().backward()
        found = [p.grad for p in model.parameters()]
        one.clear()
        return found

    ours = gradients("ours")
    assert relative_error(gradients("naive"), ours) < 1e-10
    assert relative_error(gradients('ours, mode="loss"'), ours) < 1e-10
    for other in ("identity", "Algorithm 1 as printed", "batch norm"):
        assert relative_error(gradients(other), ours) > 1e-6
    reference = copy.deepcopy(model)
    vcreg_fx.insert(reference, "blocks", demean="activations", convention="algorithm1")
    step(reference, x).forward().backward()
    found = gradients("Algorithm 1 as printed")
    assert relative_error(found, [p.grad for p in reference.parameters()]) < 1e-10


def test_the_batch_norm_is_torchs() -> None:
    site = LiveSite("m:output", "m", "output", Layout.parse("NHWC"), 6, VCRegConfig(), clone=False)
    h = torch.randn(4, 5, 5, 6)
    expected = nn.BatchNorm2d(6)(h.movedim(-1, 1)).movedim(1, -1)
    stand_in = batch_norm(site, torch.ones(()))
    torch.testing.assert_close(stand_in.regularize(h, stand_in.reference_mean(h)), expected)
    assert stand_in.active(h, True) and not stand_in.active(h, False)
    assert torch.allclose(printed(site, torch.ones(())).regularize(h, None).mean((0, 1, 2)),
                          torch.zeros(6), atol=1e-6)  # fmt: skip


def test_saved_and_peak_bytes_of_a_known_model() -> None:
    model = nn.Sequential(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 3))
    x = torch.randn(1024, 64)
    hidden = 1024 * 1000 * 4
    known = x.numel() * 4 + hidden  # the input and relu's output; what the loss keeps is small
    assert known <= saved_bytes(step(model, x)) <= known + 40_000
    # Relu's input is freed; its gradient and that of its input live beside its output.
    assert hidden * 2 <= peak_bytes(step(model, x)) <= hidden * 3.2


def test_one_site_keeps_little_more_than_identity() -> None:
    x = torch.randn(600, 8)
    model = small()
    plain = saved_bytes(Step("identity", model, model, x, "float32"))
    ours = make_variant("ours", model, "blocks", (x,))
    extra = saved_bytes(Step("ours", ours, ours, x, "float32")) - plain
    assert 0 < extra <= 2 * (2 * 16 + 64) * 4


def test_ratios_and_floors_are_taken_within_a_round() -> None:
    from vcreg_fx.benchmark._bench import _row

    pairs = [((1.0, 3.0), (1.0, 2.0)), ((2.0, 6.0), (2.0, 4.0)), ((1.0, 3.0), (1.0, 2.0))]
    row = _row("x", pairs, [0.5, 1.0, 0.5], 8, 1.0)
    assert row.ratio == (pytest.approx(4 / 3),) * 3
    assert row.forward == 1 and row.backward == 1.5
    assert row.floors == (2, 2, 2)
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0]) == (1.5, 2.0, 2.5)


class Fixed:
    """Stands in for a step, and for the floor, whose time follows from when it is taken."""

    def __init__(self, clock: list[int], slower: float = 0.0) -> None:
        self.clock, self.slower = clock, slower

    def timed(self, _: object) -> tuple[float, float]:
        self.clock[0] += 1
        return self.clock[0] + self.slower, 10.0


def test_a_variant_is_compared_with_identity_on_both_sides() -> None:
    from vcreg_fx.benchmark._bench import _rounds

    clock = [0]
    steps = {"identity": Fixed(clock), "a": Fixed(clock, 0.5), "b": Fixed(clock, 0.25)}
    pairs, floors = _rounds("m", steps, Fixed(clock), Clock(torch.device("cpu")), 3, print)
    assert len(floors) == 3 and all(len(found) == 3 for found in pairs.values())
    # The machine gets slower by one unit a step; what stands between two neighbors sees none of it.
    assert all(own[0] - base[0] == 0.5 for own, base in pairs["a"])
    assert all(own[0] - base[0] == 0.25 for own, base in pairs["b"])
    assert all(own == base for own, base in pairs["identity"])


def test_exponents() -> None:
    sizes = (10.0, 100.0, 1000.0)
    assert fit_exponent(sizes, [7 * n**1.5 for n in sizes]) == pytest.approx(1.5)


def test_the_floor_is_the_products_of_all_sites() -> None:
    floor = Floor([(8, 4), (8, 4), (16, 2)], torch.float32, torch.device("cpu"))
    assert sorted((count, tuple(z.shape)) for count, z, _ in floor._work) == [
        (1, (16, 2)),
        (2, (8, 4)),
    ]
    assert floor.timed(Clock(torch.device("cpu"))) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["ours", "fast"]}, "no variant 'fast'"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"rounds": 0}, "rounds=0"),
        ({"ranks": 2, "dtype": "amp"}, "several ranks|Several ranks"),
    ],
)
def test_what_cannot_be_timed(options: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        bench({"small": small()}, {"small": torch.randn(9, 8)}, **options)


@pytest.mark.parametrize("dtype", ["bf16", "amp", "tf32"])
def test_other_types(dtype: str) -> None:
    result = bench(
        {"small": small()}, {"small": torch.randn(64, 8)}, variants=["ours"], dtype=dtype,
        rounds=1, scaling=False,
    )  # fmt: skip
    assert result.settings["dtype"] == dtype
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_two_ranks_exchange_once_a_site() -> None:
    result = bench(
        {"small": small()}, {"small": torch.randn(64, 8)}, variants=["ours"], rounds=1, ranks=2,
        scaling=False,
    )  # fmt: skip
    exchanges = {row.variant: (row.exchanges, row.exchanged) for row in result.models[0].ranks}
    # Second moments; of two ranks the counts, the means, and what the means' rounding left over.
    per_site = 4 * (16 * 16 + 2 + 2 * 16 + 2 * 16)
    assert exchanges == {
        "identity": (0, 0), "statistics of each rank": (0, 0), "sync=True": (2, 2 * per_site),
    }  # fmt: skip
    assert "all-reduces" in result.to_markdown()


@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_can_be_kept(keep: bool) -> None:
    """In a process of its own, since it cannot be undone.

    Memory that was kept holds what was written to it; what comes anew from the system is zero. Page
    faults would show the same, but the system causes some of its own where memory is short.
    """
    code = (
        "import torch\n"
        "from vcreg_fx.benchmark._step import keep_freed_memory\n"
        f"kept = keep_freed_memory() if {keep} else False\n"
        "work = lambda: torch.empty(20_000_000)\n"
        "work().fill_(1), work().fill_(1)\n"
        "print(kept, int(work().eq(1).sum()) / 20_000_000)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    kept, share = found.stdout.split()
    if "glibc" in platform.libc_ver()[0]:
        assert kept == str(keep)
        # The allocator's own notes take a few words of a freed block.
        assert float(share) > 0.999 if keep else float(share) == 0


def test_command(tmp_path: Path) -> None:
    arguments = ["bench", "--models", "timm/test_resnet", "--batch", "4", "--rounds", "1",
                 "--no-keep-memory",
                 "--variants", "naive; ours", "--json", str(tmp_path / "b.json"),
                 "-o", str(tmp_path / "out")]  # fmt: skip
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert "the floor is" in found.output and "time ∝ n^" in found.output
    data = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert [row["variant"] for row in data["models"][0]["rows"]] == ["identity", "naive", "ours"]
    assert {"processor", "torch", "threads"} <= set(data["machine"])
    assert all(math.isfinite(growth["exponent"]) for growth in data["scaling"])
    bias = {row["estimate"]: row for row in data["bias"]}
    for name in ("interval=8", "sample=256, delta=None, alpha=0"):
        assert abs(bias[name]["projection"] - 1) <= 3 * bias[name]["error"] + 1e-9
    assert data == json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    for name in ("table.png", "scaling.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
        assert f"]({name})" in (tmp_path / "out" / "results.md").read_text("utf-8")
    assert "of a training step" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_sites_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(small(), nn.Linear(4, 16), Residual())
    before = copy.deepcopy(model.state_dict())
    result = bench_sites({"small": model}, {"small": torch.randn(600, 8)}, rounds=2)
    (found,) = result.models
    (kind,) = found.kinds  # three blocks of one shape
    assert (kind.count, kind.shape, kind.size, kind.layout) == (3, (600, 16), (600, 16), "NC")
    assert kind.strides == kind.grad_strides == (16, 1)
    assert [row.variant for row in found.rows] == [name for name in VARIANTS if name != "identity"]
    by_name = {row.variant: row for row in found.rows}
    assert by_name["naive"].seconds > by_name["ours, interval=16"].seconds
    assert all(row.share == row.seconds / found.step for row in found.rows)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_other_regularizers_are_timed_where_they_are_named() -> None:
    names = ["DeCov", "WLD-Reg", "SIGReg", "Radial-VCReg"]
    model, x = small(), torch.randn(60, 8)
    alone = bench_sites({"small": model}, {"small": x}, variants=names, rounds=1)
    assert [row.variant for row in alone.models[0].rows] == names
    assert not set(names) & set(VARIANTS)
    result = bench({"small": model}, {"small": x}, variants=names, rounds=1, scaling=False)
    assert [row.variant for row in result.models[0].rows] == ["identity", *names]


def test_sites_alone_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variant is compiled, the identity among them, for each kind of sites; and the model."""
    made: list[str] = []
    compiler = torch.compile

    def noted(model: nn.Module) -> object:
        made.append(type(model[0]).__name__)
        return compiler(model, backend="eager")

    monkeypatch.setattr(torch, "compile", noted)
    options = {"variants": ["naive", "ours"], "rounds": 1, "compile": True}
    result = bench_sites({"small": small()}, {"small": torch.randn(60, 8)}, **options)
    assert made == ["Linear", "_Here", "_Here", "_Here"]
    assert result.settings["compiled"] is True
    assert all(row.seconds > 0 for row in result.models[0].rows)


def test_sites_have_the_strides_of_a_step() -> None:
    model = timm.create_model("test_convnext", num_classes=4)
    batch = torch.randn(2, 3, 64, 64)
    kinds = site_kinds(model, batch, "blocks", "float32")
    expected: dict[str, tuple[int, ...]] = {}
    for site in vcreg_fx.plan(model, "blocks", example_inputs=(batch,)).sites:
        module = model.get_submodule(site.path)
        module.register_forward_hook(
            lambda _, __, out, name=site.name: expected.__setitem__(name, out.stride())
        )
    model.train()(batch)
    assert sum(kind.count for kind in kinds) == len(expected)
    assert all(kind.strides == expected[kind.first] for kind in kinds)


def test_command_for_sites(tmp_path: Path) -> None:
    arguments = ["bench", "--sites", "--models", "timm/test_resnet", "--batch", "4",
                 "--rounds", "1", "--no-keep-memory", "--variants", "naive; ours",
                 "-o", str(tmp_path)]  # fmt: skip
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert "of a step" in found.output and "ours" in found.output
    data = json.loads((tmp_path / "sites.json").read_text("utf-8"))
    assert [row["variant"] for row in data["models"][0]["rows"]] == ["naive", "ours"]
    page = (tmp_path / "sites.md").read_text("utf-8")
    assert page.startswith("# At the sites alone") and "| ours |" in page
    assert "of a training step" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sites", "--ranks", "2"], "--sites is for one process"),
        (["--sites", "--dtype", "bf16"], "--sites is for one process"),
        (["--models", "resnet1"], "Did you mean"),
        (["--variants", "fast"], "There is no variant 'fast'"),
        (["--variants", "fast", "--sites"], "There is no variant 'fast'"),
        (["--rule", "nothing"], "There is no rule"),
        (["--device", "cuda"], "cannot be used"),
        (["--models", "transformers/BertModel"], "noise is no input"),
    ],
)
def test_command_errors(arguments: list[str], message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    base = ["bench", "--models", "timm/test_resnet", "--rounds", "1", *arguments]
    found = CliRunner().invoke(app, base)
    assert found.exit_code == 1
    assert message in " ".join(found.output.split())


def test_the_papers_ratios_stand_beside_ours() -> None:
    row = Row("naive", 1.0, (1, 1, 1), 1, 1, (1, 1, 1), 0, 1)
    found = ModelResult("torchvision/vit_b_32", 16, [("a", 4, 2)], 1, 0.1, 0, 1, [row])
    assert "| 6.40 |" in BenchResult({}, {}, [found]).to_markdown()  # table 8: 1.427 s / 0.223 s


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_variants_compile_in_one_process(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gives up at the ninth form of a function unless it is told otherwise."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    result = bench(
        {"small": small()}, {"small": torch.randn(64, 8)}, rounds=1, compile=True, scaling=False
    )
    assert result.settings["compiled"] is True
    assert counters["stats"]["unique_graphs"] == len(VARIANTS)
    assert not counters["graph_break"]
    assert torch._dynamo.config.recompile_limit == 8
