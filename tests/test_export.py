"""What is exported does what the model does: every format, at several batch sizes."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import vcreg_fx
from tests.models import SMALL, relative_error, task_loss
from vcreg_fx.exporting import ExportError, _export, _folder, read_metadata
from vcreg_fx.exporting._folder import FILES, import_folder

BATCHES = (1, 2, 7)
# A batch of one has to leave batch norms two values a channel.
SHAPES = {"resnet18": (3, 64, 64), "convnext": (3, 64, 64)}
FLAT = ["resnet18", "convnext", "vit_tiny", "swin"]
ALL = [*FLAT, "videomae"]
# Batch norms have the argument in releases after torch 2.10.
NO_BIAS = ", bias=False" if "bias" in inspect.signature(nn.BatchNorm2d).parameters else ""


def videomae() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, num_labels=5,
    )  # fmt: skip
    return transformers.VideoMAEForVideoClassification(config)


def inserted(name: str, rule: str = "blocks | head", **options) -> tuple[nn.Module, tuple]:
    """Build a model with VCReg whose running means and coefficients are not those of the start."""
    if name == "videomae":
        model, shape = videomae(), (4, 3, 32, 32)
    else:
        model, shape = SMALL[name][0](), SHAPES.get(name, SMALL[name][1][1:])
    x = torch.randn(4, *shape)
    vcreg_fx.insert(model, rule, example_inputs=(x,), **options)
    vcreg_fx.sites(model)[0].alpha = 0.5
    model.train()
    first(model(x))
    return model, shape


def first(output) -> torch.Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return first(model(x))


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(3)
    output = first(model(x))
    task_loss(output).backward()
    return output, {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_trains_alike(model: nn.Module, other: nn.Module, shape: tuple) -> None:
    for batch in BATCHES:
        x = torch.randn(batch, *shape)
        output, expected = gradients(model, x)
        again, found = gradients(other, x)
        assert torch.equal(output, again)
        assert found.keys() == expected.keys()
        assert relative_error([found[k] for k in expected], [*expected.values()]) <= 1e-6


def has_penalty(model: nn.Module, shape: tuple) -> bool:
    """Whether the gradients of a model are not those of the task alone."""
    x = torch.randn(4, *shape)
    _, expected = gradients(model, x)
    _, plain = gradients(vcreg_fx.remove(copy.deepcopy(model)), x)
    return any(not torch.allclose(plain[key], expected[key], rtol=1e-3) for key in plain)


def mostly_slow(names, *quick):
    """The names, all but the quick ones among the slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Round trips ---------------------------------------------------------------------------------


# A batch of one has one sample at the head, which warns, once for each site.
pytestmark = pytest.mark.filterwarnings("ignore:.*got one sample:UserWarning")


@pytest.mark.parametrize("name", FLAT)
def test_fx_folder(name, tmp_path):
    model, shape = inserted(name)
    x = torch.randn(2, *shape)
    before = [module.training for module in model.modules()]
    vcreg_fx.export(model, tmp_path / "exported", "fx", example_inputs=(x,))
    assert [module.training for module in model.modules()] == before
    loaded = import_folder(tmp_path / "exported").load()
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert vcreg_fx.get_config(loaded) == vcreg_fx.get_config(model)
    model.eval()
    for batch in BATCHES:
        x = torch.randn(batch, *shape)
        assert torch.equal(outputs(loaded, x), outputs(model, x))
    assert_trains_alike(model.train(), loaded.train(), shape)
    assert has_penalty(model, shape)


@pytest.mark.parametrize("name", mostly_slow(ALL, "vit_tiny", "resnet18"))
def test_pt2_for_inference(name, tmp_path):
    model, shape = inserted(name)
    x = torch.randn(2, *shape)
    path = vcreg_fx.export(model, tmp_path / "model.pt2", example_inputs=(x,), check=False)
    assert model.training
    loaded = torch.export.load(path).module()
    model.eval()
    for batch in BATCHES:
        x = torch.randn(batch, *shape)
        assert torch.equal(outputs(loaded, x), outputs(model, x))
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist() if "vcreg_fx.json" not in n}
    assert entries
    assert [name for name, data in entries.items() if b"vcreg" in data.lower()] == []


@pytest.mark.parametrize("name", mostly_slow(ALL, "vit_tiny", "resnet18"))
def test_pt2_for_training(name, tmp_path):
    model, shape = inserted(name)
    x = torch.randn(2, *shape)
    path = tmp_path / "model.pt2"
    vcreg_fx.export(model, path, training=True, example_inputs=(x,), check=False)
    program = torch.export.load(path)
    calls = [n for n in program.graph.nodes if n.target == torch.ops.vcreg_fx.vcreg.default]
    assert len(calls) == len(vcreg_fx.sites(model))
    assert_trains_alike(model, program.module(), shape)
    assert has_penalty(model, shape)


@pytest.mark.parametrize("name", mostly_slow(ALL, "vit_tiny"))
def test_onnx(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, shape = inserted(name)
    path = tmp_path / "model.onnx"
    vcreg_fx.export(model, path, example_inputs=(torch.randn(2, *shape),), check=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    model.eval()
    for batch in BATCHES:
        x = torch.randn(batch, *shape)
        found = torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
        torch.testing.assert_close(found, outputs(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rule": "residual"}, {"demean": "activations"}], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_other_rules_and_variants(name, options, tmp_path):
    model, shape = inserted(name, **{"rule": "blocks", **options})
    x = torch.randn(2, *shape)
    if name != "videomae":
        vcreg_fx.export(model, tmp_path / "exported", example_inputs=(x,))
        loaded = import_folder(tmp_path / "exported").load()
        assert_trains_alike(copy.deepcopy(model), loaded.train(), shape)
    vcreg_fx.export(model, tmp_path / "t.pt2", training=True, example_inputs=(x,))
    program = torch.export.load(tmp_path / "t.pt2").module()
    assert_trains_alike(model, program, shape)
    vcreg_fx.export(model, tmp_path / "e.pt2", example_inputs=(x,))
    vcreg_fx.export(model, tmp_path / "e.onnx", example_inputs=(x,))


FRESH = """\
import sys, torch
torch.set_num_threads(1)
x = torch.load("x.pt")
plain = torch.export.load("inference.pt2").module()
output = plain(x)
assert "vcreg_fx" not in sys.modules
import vcreg_fx, exported
torch.save(output, "output.pt")
def gradients(model):
    torch.manual_seed(3)
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output * weights).sum().backward()
    return {k: p.grad for k, p in model.named_parameters()}
torch.save(gradients(torch.export.load("training.pt2").module()), "pt2.pt")
torch.save(gradients(exported.load().train()), "fx.pt")
"""


def test_a_fresh_process(tmp_path):
    model, shape = inserted("convnext")
    x = torch.randn(4, *shape)
    torch.save(x, tmp_path / "x.pt")
    options = {"example_inputs": (x,), "check": False}
    vcreg_fx.export(model, tmp_path / "inference.pt2", **options)
    vcreg_fx.export(model, tmp_path / "training.pt2", training=True, **options)
    vcreg_fx.export(model, tmp_path / "exported", **options)
    root = str(Path(vcreg_fx.__file__).parent.parent)
    code = f"import sys\nsys.path[:0] = ['.', {root!r}]\n{FRESH}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, expected = gradients(model, x)
    for file in ("pt2.pt", "fx.pt"):
        found = torch.load(tmp_path / file)
        assert relative_error([found[k] for k in expected], [*expected.values()]) <= 1e-6
    assert torch.equal(torch.load(tmp_path / "output.pt"), outputs(model.eval(), x))


# Metadata ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".pt2", ".onnx"])
def test_metadata(ending, tmp_path):
    if ending == ".onnx":
        pytest.importorskip("onnx")
    model, shape = inserted("vit_tiny")
    path = vcreg_fx.export(
        model, tmp_path / f"model{ending}", example_inputs=(torch.randn(2, *shape),)
    )
    found = read_metadata(path)
    assert found["vcreg_fx"] == vcreg_fx.__version__
    assert (found["model"], found["format"]) == ("VisionTransformer", ending[1:] or "fx")
    assert found["insertions"] == json.loads(json.dumps(vcreg_fx.get_configs(model)))
    assert [site["name"] for site in found["sites"]] == [s.name for s in vcreg_fx.sites(model)]
    assert found["sites"][0] == {
        "name": "blocks.0:output", "layout": "NLC", "channels": 192, "alpha": 0.5, "beta": 0.08
    }  # fmt: skip


def test_metadata_of_something_else(tmp_path):
    torch.export.save(
        torch.export.export(nn.Linear(2, 2), (torch.randn(2, 2),)), tmp_path / "linear.pt2"
    )
    with pytest.raises(vcreg_fx.InsertionError, match=r"not written by vcreg_fx\.export"):
        read_metadata(tmp_path / "linear.pt2")
    with pytest.raises(vcreg_fx.InsertionError, match=r"not written by vcreg_fx\.export"):
        read_metadata(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path / "nothing.pt2")


# Weights and code of folders -----------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Odd(nn.Module):
    """Tied weights, a frozen layer, buffers that are not saved, constants, two input tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(nn.LayerNorm(6)) for _ in range(2)))
        self.blocks[1].linear.weight = self.blocks[0].linear.weight
        self.blocks[0].norm.requires_grad_(requires_grad=False)
        self.register_buffer("offset", torch.arange(6.0), persistent=False)
        self.head = nn.Linear(6, 3).to(memory_format=torch.contiguous_format)
        self.head.weight = nn.Parameter(self.head.weight.detach().t().contiguous().t())

    def forward(self, x, scale, double=False):
        scale = scale * torch.tensor([1.0, 2, 3, 4, 5, 6]).to(x)
        x = self.blocks(x * scale + self.offset)
        return {"logits": self.head(x), "features": x * 2 if double else x}


@pytest.fixture
def odd():
    model = Odd().double()
    call = (torch.randn(4, 6).double(), torch.randn(4, 1).double())
    return vcreg_fx.insert(model, "blocks", example_inputs=call), call


def test_fx_folder_of_an_odd_model(odd, tmp_path):
    model, call = odd
    vcreg_fx.export(model, tmp_path / "odd", example_inputs=call)
    loaded = import_folder(tmp_path / "odd").load()
    assert (
        loaded.blocks.get_submodule("0").linear.weight
        is loaded.blocks.get_submodule("1").linear.weight
    )
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert [p.requires_grad for p in loaded.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert loaded.head.weight.stride() == model.head.weight.stride()
    found, expected = loaded(*call), model.eval()(*call)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_class_named_like_an_import(tmp_path):
    class Demean(Odd):
        pass

    call = (torch.randn(4, 6), torch.randn(4, 1))
    model = vcreg_fx.insert(Demean(), "blocks", example_inputs=call)
    vcreg_fx.export(model, tmp_path / "odd", example_inputs=call)
    assert type(import_folder(tmp_path / "odd").load()).__name__ == "DemeanModel"


def test_weights_of_another_model_are_refused(odd, tmp_path):
    model, call = odd
    vcreg_fx.export(model, tmp_path / "odd", example_inputs=call)
    code = (tmp_path / "odd" / "model.py").read_text("utf-8")
    (tmp_path / "odd" / "model.py").write_text(
        code.replace("nn.Linear(6, 3)", "nn.Linear(6, 3, bias=False)")
    )
    with pytest.raises(ExportError, match=r"does not fit Odd: \['head.bias'\]"):
        import_folder(tmp_path / "odd").load()


def test_folder_code_is_readable(tmp_path):
    model, shape = inserted("resnet18")
    vcreg_fx.export(model, tmp_path / "r18", example_inputs=(torch.randn(2, *shape),), check=False)
    code = (tmp_path / "r18" / "model.py").read_text("utf-8")
    for line in (
        'place(self, "bn1", nn.BatchNorm2d(64))',
        "class ResNet(nn.Module):",
        "    def forward(self, x):",
        "demean_layer1_0_output = self.demean_layer1_0_output(",
        "    alpha=0.5,",
    ):
        assert line in code
    assert {p.name for p in (tmp_path / "r18").iterdir() if p.is_file()} == {
        "__init__.py", "model.py", "vcreg_fx.json", "weights.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, bias=False),
         "nn.Conv2d(3, 4, (3, 3), padding=(1, 1), bias=False)"),
        (nn.BatchNorm2d(4, momentum=None, affine=False),
         f"nn.BatchNorm2d(4, momentum=None, affine=False{NO_BIAS})"),
        (nn.LayerNorm(4, elementwise_affine=False),
         "nn.LayerNorm((4,), elementwise_affine=False, bias=False)"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True),
         "nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=8, vdim=8, batch_first=True)"),
        (nn.Hardtanh(0, float("inf")), 'nn.Hardtanh(min_val=0, max_val=float("inf"))'),
        (nn.Upsample(scale_factor=2.0, mode="bilinear"),
         'nn.Upsample(scale_factor=2.0, mode="bilinear")'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_constructors(module, expected):
    from vcreg_fx.exporting._code import constructor

    assert constructor(module, "path") == (expected, None)


def changed(module, **attributes):
    vars(module).update(attributes)
    return module


class Keeper(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Keeper(3), "does not keep its argument width"),
        (changed(nn.ReLU(), extra=3), "differs in extra"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "cannot be"),
        (nn.utils.spectral_norm(nn.Linear(2, 2)), "it has hooks"),
    ],
)
def test_modules_that_are_no_code(module, message):
    from vcreg_fx.exporting._code import constructor

    with pytest.raises(ExportError, match=message):
        constructor(module, "some.path")


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("model.tflite", {}, "'tflite' is not a format"),
        ("model.onnx", {"training": True}, "ONNX files are for inference"),
        ("my-model", {}, "cannot be imported"),
        ("class", {}, "cannot be imported"),
        ("model.pt2", {"format": "fx"}, "has the ending of a file"),
        ("folder", {"format": "pt2"}, "is a folder"),
        ("file", {}, "is a file"),
    ],
)
def test_paths_and_formats(path, options, message, odd, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    model, call = odd
    with pytest.raises(ExportError, match=message):
        vcreg_fx.export(model, tmp_path / path, example_inputs=call, **options)


# What is replaced, and what is run -----------------------------------------------------------


@pytest.fixture
def stack():
    model = nn.Sequential(*(Block(nn.LayerNorm(6)) for _ in range(2)))
    return vcreg_fx.insert(model, "blocks", example_inputs=(torch.randn(2, 6),))


def write(model, path, **options):
    return vcreg_fx.export(model, path, example_inputs=(torch.randn(2, 6),), **options)


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_exports_are_replaced(stack, tmp_path):
    (tmp_path / "mine.pt2").write_text("notes")
    torch.save({}, tmp_path / "weights.pt2")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "thesis.tex").write_text("all of it")
    before = everything(tmp_path)
    for name in ("mine.pt2", "weights.pt2", "code"):
        with pytest.raises(ExportError, match="holds what no export wrote.*overwrite=True"):
            write(stack, tmp_path / name)
    assert everything(tmp_path) == before
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # the second time, what is there is an export
        write(stack, tmp_path / "empty")
        write(stack, tmp_path / "e.pt2", check=False)
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ExportError, match=r"notes\.txt"):
        write(stack, tmp_path / "empty")
    write(stack, tmp_path / "code", overwrite=True)
    write(stack, tmp_path / "mine.pt2", overwrite=True, check=False)
    assert {path.name for path in (tmp_path / "code").iterdir()} <= FILES
    assert read_metadata(tmp_path / "mine.pt2")["format"] == "pt2"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["folder", "file.pt2"])
def test_an_export_that_fails_leaves_the_one_before(stack, tmp_path, monkeypatch, name):
    write(stack, tmp_path / name, check=False)
    (tmp_path / name).touch()
    before = everything(tmp_path)
    vcreg_fx.sites(stack)[0].alpha = 0.1

    def full(*_):
        raise OSError(28, "No space left on device")

    for fault in ("sync", "check_outputs"):
        with monkeypatch.context() as patched:
            for module in (_export, _folder):
                patched.setattr(module, fault, full, raising=module is _export)
            with pytest.raises(OSError, match="No space left"):
                write(stack, tmp_path / name)
        assert everything(tmp_path) == before
    write(stack, tmp_path / name, check=False)
    assert read_metadata(tmp_path / name)["sites"][0]["alpha"] == 0.1
    assert import_folder(tmp_path / name).load() if name == "folder" else True


class Evil:
    def __reduce__(self):
        return open, ("was-run", "w")


def test_reading_metadata_runs_nothing(stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(stack, tmp_path / "good.pt2", check=False)
    with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("evil.pt2", "w") as evil:
        for name in good.namelist():
            kept = name.endswith("vcreg_fx.json") or "." not in name
            evil.writestr(name, good.read(name) if kept else pickle.dumps(Evil()))
    assert read_metadata("evil.pt2") == read_metadata("good.pt2")
    assert not Path("was-run").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert Path("was-run").exists(), "the file would have run code"


def test_weights_of_another_shape_are_refused(stack, tmp_path):
    write(stack, tmp_path / "folder")
    code = (tmp_path / "folder" / "model.py").read_text()
    (tmp_path / "folder" / "model.py").write_text(code.replace("6", "7"))
    with pytest.raises(ExportError, match=r"is \(6,\) there, and \(7,\) in the code"):
        import_folder(tmp_path / "folder").load()
    weights = tmp_path / "folder" / "weights.safetensors"
    (tmp_path / "folder" / "model.py").write_text(code)
    for content in (weights.read_bytes()[:-9], b"", b"{}"):
        weights.write_bytes(content)
        with pytest.raises(ExportError, match=r"weights\.safetensors is damaged"):
            import_folder(tmp_path / "folder").load()


def test_models_that_are_refused(tmp_path):
    path = tmp_path / "m.pt2"
    with pytest.raises(vcreg_fx.InsertionError, match="was not inserted"):
        vcreg_fx.export(SMALL["resnet18"][0](), path)
    with torch.device("meta"):
        model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks")
    with pytest.raises(ExportError, match="meta device"):
        vcreg_fx.export(model, path)
    model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks")
    with pytest.raises(vcreg_fx.ExampleInputsError, match="failed on the example"):
        vcreg_fx.export(model, path, example_inputs=(torch.randn(2, 5, 9, 9),))
    model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks", mode="loss")
    with pytest.raises(ExportError, match='mode="loss"'):
        vcreg_fx.export(model, path, training=True, example_inputs=(torch.randn(2, 3, 64, 64),))
    assert not path.exists()
    model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks", regularizer="decov")
    with pytest.raises(ExportError, match="a regularizer other than VCReg"):
        vcreg_fx.export(model, tmp_path / "decov")
    with pytest.raises(ExportError, match="a regularizer other than VCReg"):
        vcreg_fx.export(model, path, training=True)
    vcreg_fx.export(model, path)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(nn.LayerNorm(6)) for _ in range(2)))

    def forward(self, x):
        if x.shape[0] != 4:
            raise ValueError("batches of four, please")
        return self.blocks(x)


def test_a_model_for_one_batch_size(tmp_path):
    x = torch.randn(4, 6)
    model = vcreg_fx.insert(FixedBatch(), "blocks", example_inputs=(x,))
    with pytest.raises(ExportError, match="dynamic_batch=False"):
        vcreg_fx.export(model, tmp_path / "m.pt2", example_inputs=(x,))
    for ending in ("pt2", "onnx"):
        path = tmp_path / f"m.{ending}"
        vcreg_fx.export(model, path, example_inputs=(x,), dynamic_batch=False)
        assert path.exists()


def test_the_check_notices_what_differs(odd):
    from vcreg_fx.exporting._example import Example, check_gradients, check_outputs

    model, call = odd
    example = Example(call, {}, 4)
    check_gradients(model, copy.deepcopy(model), example, (4, 3))
    other = vcreg_fx.remove(copy.deepcopy(model))
    with pytest.raises(ExportError, match="gradients of"):
        check_gradients(model, other, example, (4,))
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(ExportError, match="differ from the model's by 1"):
        check_outputs(model, lambda c: other(*c.args), example, (3,), "it")
    with pytest.raises(ExportError, match="are 1 tensors, the model's 2"):
        check_outputs(model, lambda c: other(*c.args)["logits"], example, (3,), "it")
    with pytest.raises(ExportError, match="have shape"):
        check_outputs(
            model, lambda c: {k: v[:1] for k, v in other(*c.args).items()}, example, (3,), "it"
        )
    other.head.bias.data.fill_(float("nan"))
    with pytest.raises(ExportError, match="differ"):
        check_outputs(model, lambda c: other(*c.args), example, (3,), "it")
