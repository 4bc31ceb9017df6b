"""Positions that are no samples: padding, class and register tokens, against the naive loss."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from pathlib import Path

import pytest
import timm
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vcreg_fx
from placement_rules import Layout
from tests.strategies import MEMORY, in_memory
from vcreg_fx import VCRegConfig, rules, vcreg_loss
from vcreg_fx.site._live import LiveSite
from vcreg_fx.site._positions import Positions

LAYOUTS = ("NC", "NLC", "NCL", "LNC", "NCHW", "NHWC", "NCTHW")


class Fixed(Positions):
    """Positions that are given."""

    def __init__(self, absent: Tensor) -> None:
        super().__init__("m:output", Layout(absent.ndim + 1, 0))
        self._absent = absent

    def absent(self, h: Tensor) -> Tensor:
        return self._absent


@st.composite
def masked(draw: st.DrawFn) -> tuple[Tensor, Layout, Tensor]:
    layout = Layout.parse(draw(st.sampled_from(LAYOUTS)))
    sizes = [draw(st.integers(1, 5)) for _ in range(layout.ndim - 1)]
    d = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((0.1, 1.0)))
    h = torch.randn(*sizes, d, generator=generator, dtype=torch.float64) * scale
    h = h + 30 * torch.randn(d, generator=generator, dtype=torch.float64)
    mask = torch.rand(sizes, generator=generator) < draw(st.sampled_from((0.0, 0.3, 0.7, 1.0)))
    h[~mask] = draw(st.sampled_from((0.0, 1e9, float("inf"), float("nan"))))
    h = h.movedim(-1, layout.axis)
    return in_memory(h, layout, draw(st.sampled_from(MEMORY[:3]))), layout, mask


def gradient_at(
    h: Tensor, layout: Layout, mask: Tensor, arriving: Tensor, **config: object
) -> Tensor:
    """Return the gradient of (arriving · h) plus VCReg, by a site."""
    leaf = h.detach().requires_grad_()
    site = LiveSite("m:output", "m", "output", layout, 1, VCRegConfig(**config), clone=False)
    site.positions = Fixed(~mask)
    x = leaf.view_as(leaf)
    if not site.active(x, True):
        return arriving.clone()
    out = site.regularize(x, site.reference_mean(x))
    loss = site.passes.take()[0] if site.config.mode == "loss" else None
    outputs, grads = ([out], [arriving]) if loss is None else ([out, loss], [arriving, None])
    return torch.autograd.grad(outputs, leaf, grads)[0]


@pytest.mark.filterwarnings("ignore:m.output got")
@pytest.mark.parametrize("backend", ["fast", "naive"])
@pytest.mark.parametrize("mode", ["gradient", "loss"])
@given(
    drawn=masked(),
    delta=st.sampled_from((None, 0.05, 1.0)),
    gamma=st.sampled_from((0.5, 1.0, 3.0)),
)
@settings(max_examples=60)
def test_the_gradient_is_that_of_the_samples_alone(mode, backend, drawn, delta, gamma) -> None:
    h, layout, mask = drawn
    arriving = torch.randn(h.shape, dtype=h.dtype)
    how = {"delta": delta, "gamma": gamma}
    found = gradient_at(h, layout, mask, arriving, mode=mode, backend=backend, **how)
    leaf = h.detach().requires_grad_()
    (expected,) = torch.autograd.grad(vcreg_loss(leaf, layout=layout, mask=mask, **how), leaf)
    torch.testing.assert_close(found, arriving + expected, rtol=1e-8, atol=1e-10)


@given(drawn=masked(), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
@settings(max_examples=40)
def test_other_types(drawn, dtype) -> None:
    h, layout, mask = drawn
    assume(int(mask.sum()) > 1)
    # What is left out must not matter bit for bit, whatever the type.
    h = h.to(dtype)
    other = h.clone()
    other.movedim(layout.axis, -1)[~mask] = 7.0
    arriving = torch.randn(h.shape, dtype=torch.float64).to(dtype)
    one, two = (gradient_at(x, layout, mask, arriving) for x in (h, other))
    assert torch.equal(one, two)
    assert torch.equal(
        one.movedim(layout.axis, -1)[~mask], arriving.movedim(layout.axis, -1)[~mask]
    )


@pytest.mark.parametrize("config", [{"sample": 8}, {"interval": 3}, {"sample": 10**6}])
def test_estimates_draw_from_the_samples(config) -> None:
    torch.manual_seed(0)
    mask = torch.rand(6, 9) < 0.5
    h = torch.randn(6, 9, 4, dtype=torch.float64) * 0.3
    h[~mask] = float("nan")
    layout, zero = Layout.parse("NLC"), torch.zeros_like(h)
    # Estimates of a tensor of the samples alone draw the same ones.
    kept = h[mask]
    found = gradient_at(h, layout, mask, zero, **config)
    all_of_it = torch.ones(len(kept), dtype=torch.bool)
    alone = gradient_at(kept, Layout.parse("NC"), all_of_it, torch.zeros_like(kept), **config)
    torch.testing.assert_close(found[mask], alone)
    assert not found[~mask].any()


def test_ratio_is_of_what_the_samples_get() -> None:
    torch.manual_seed(0)
    mask = torch.rand(6, 9) < 0.5
    h, arriving = torch.randn(2, 6, 9, 4, dtype=torch.float64) * 0.3
    for backend in ("fast", "naive"):
        found = gradient_at(
            h, Layout.parse("NLC"), mask, arriving, ratio=0.25, backend=backend, delta=None
        )
        added = found - arriving
        assert not added[~mask].any()
        torch.testing.assert_close(added.norm(), 0.25 * arriving.norm())


# Models ------------------------------------------------------------------------------------

TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(vocab_size=20, **TINY)).double().train()


def tokens(lengths: tuple[int, ...] = (7, 4, 2)) -> dict[str, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(0, 20, mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask.long()}


def task(output: object) -> Tensor:
    return output.last_hidden_state[:, 0].square().sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {k: p for k, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {k: g for k, g in zip(named, found, strict=True) if g is not None}


def naive(model: nn.Module, masks: list[Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients with the reference at each block, on a copy without VCReg."""
    plain, seen = vcreg_fx.remove(copy.deepcopy(model)), []
    for block in plain.encoder.layer:
        block.register_forward_hook(lambda m, a, out: seen.append(out))
    loss = task(plain(**given))
    hidden = [out[0] if isinstance(out, tuple) else out for out in seen]
    for h, mask in zip(hidden, masks, strict=True):
        loss = loss + vcreg_loss(h, layout="NLC", mask=mask)
    return gradients(plain, loss)


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("mode", ["gradient", "loss"])
def test_a_text_model_leaves_padding_out(mode) -> None:
    model, given = bert(), tokens()
    expected = naive(model, [given["attention_mask"]] * 2, given)
    vcreg_fx.insert(model, mode=mode)
    rebuilt = bert()
    vcreg_fx.insert(rebuilt, mode=mode)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(rebuilt))):
        same.load_state_dict(model.state_dict())
        loss = task(same(**given))
        loss = loss + vcreg_fx.penalty(same) if mode == "loss" else loss
        assert_alike(gradients(same, loss), expected)
    assert vcreg_fx.sites(model)[0].samples == 13
    everything = naive(model, [None, None], {"input_ids": given["input_ids"]})
    loss = task(model(input_ids=given["input_ids"]))
    loss = loss + vcreg_fx.penalty(model) if mode == "loss" else loss
    assert_alike(gradients(model, loss), everything)


def test_the_plan_says_where_masks_are_followed() -> None:
    assert "attention_mask: where the model is called with it" in str(vcreg_fx.plan(bert()))


def test_mask_none_counts_every_position() -> None:
    model, given = bert(), tokens()
    expected = naive(model, [None, None], given)
    vcreg_fx.insert(model, mask=None)
    assert_alike(gradients(model, task(model(**given))), expected)
    assert vcreg_fx.get_config(model)["mask"] is None


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_finds_the_mask_of_its_own_call(reentrant) -> None:
    model, given, other = bert(), tokens(), tokens((5, 5, 3))
    one, two = (naive(model, [g["attention_mask"]] * 2, g) for g in (given, other))
    vcreg_fx.insert(model, mode="gradient" if reentrant else "loss")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def penalty(model: nn.Module) -> Tensor:
        return torch.zeros(()) if reentrant else vcreg_fx.penalty(model)

    losses = []
    for example in (given, other):
        loss = task(model(**example))
        losses.append(loss + penalty(model))
    for loss, expected in zip(losses, (one, two), strict=True):  # the older one first
        model.zero_grad()
        loss.backward()
        found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        assert_alike(found, expected)
    with pytest.raises(RuntimeError, match="different masks"):
        (task(model(**given)) + task(model(**other)) + penalty(model)).backward()


@pytest.mark.filterwarnings("ignore:encoder.layer")  # noticing looks at one thread's passes
def test_threads_keep_their_masks_apart() -> None:
    model, examples = bert(), [tokens((6, k, 2)) for k in (2, 3, 4, 5, 6)]
    expected = [naive(model, [g["attention_mask"]] * 2, g) for g in examples]
    vcreg_fx.insert(model)
    failures: list[Exception] = []

    def run(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        try:
            for _ in range(3):
                assert_alike(gradients(model, task(model(**given))), wanted)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=p) for p in zip(examples, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_encoder_and_decoder_have_masks_of_their_own() -> None:
    config = transformers.BartConfig(
        vocab_size=20, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=0.0,
        pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
        forced_eos_token_id=3,
    )  # fmt: skip
    ids, mask = tokens().values()
    given = {"input_ids": ids, "decoder_input_ids": ids.clone()}
    model = transformers.BartModel(config).train()
    vcreg_fx.insert(model, example_kwargs=given)
    decoder_mask = torch.ones_like(mask)
    decoder_mask[:, -1] = 0
    masks = {"attention_mask": mask, "decoder_attention_mask": decoder_mask}
    model(**given, **masks).last_hidden_state.sum().backward()
    parts = {"encoder": 13, "decoder": 18}
    found = {site.name: site.samples for site in vcreg_fx.sites(model)}
    assert found == {f"{part}.layers.{i}:output": n for part, n in parts.items() for i in (0, 1)}


class Padded(nn.Module):
    """A home-made model around torch's encoder."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=src_key_padding_mask)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_encoder(batch_first) -> None:
    torch.manual_seed(0)
    padding = ~tokens()["attention_mask"].bool()
    x = torch.randn(3, 7, 8) if batch_first else torch.randn(7, 3, 8)
    model = Padded(batch_first)
    vcreg_fx.insert(model, example_inputs=(x[:, :2],))
    model(x, src_key_padding_mask=padding).sum().backward()
    assert [site.samples for site in vcreg_fx.sites(model)] == [13, 13]
    with pytest.warns(UserWarning, match="as many examples as positions"):
        model(x[:3, :3], src_key_padding_mask=padding[:, :3]).sum().backward()


class Scored(Padded):
    """A home-made model whose mask is called as in transformers."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=attention_mask)


def test_a_mask_of_scores_is_not_taken_for_one_of_samples() -> None:
    x, mask = torch.randn(3, 7, 8), tokens()["attention_mask"].float().log()  # 0 and −∞
    model = Scored()
    vcreg_fx.insert(model, example_inputs=(x[:, :2],))
    with pytest.warns(UserWarning, match="may be added to the attention's scores"):
        model(x, mask).sum().backward()
    assert vcreg_fx.sites(model)[0].samples == 21


def test_an_uncertain_mask_warns_once_or_is_refused() -> None:
    config = transformers.Wav2Vec2Config(
        conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
        feat_extract_norm="layer", layerdrop=0.0, **{**TINY, "hidden_dropout": 0.0},
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config).train()
    vcreg_fx.insert(model)
    sound, mask = torch.randn(2, 400), torch.ones(2, 400, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(sound, attention_mask=mask)  # nothing is masked
    mask[0, 200:] = 0
    with pytest.warns(UserWarning, match="attention_mask was given"):
        model(sound, attention_mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(sound, attention_mask=mask)
    vcreg_fx.remove(model)

    def of_features(arguments: dict[str, Tensor]) -> Tensor:
        length = (arguments["input_values"].shape[1] - 10) // 5 + 1
        lengths = (arguments["attention_mask"].sum(1) - 10) // 5 + 1
        return torch.arange(length) < lengths[:, None]

    vcreg_fx.insert(model, mask=of_features)
    model(sound, attention_mask=mask).last_hidden_state.sum().backward()
    assert {site.samples for site in vcreg_fx.sites(model)} == {79 + 39}
    vcreg_fx.remove(model)
    vcreg_fx.insert(model, mask="attention_mask")
    with pytest.raises(RuntimeError, match="other sizes"):
        model(sound, attention_mask=mask)


def test_names_that_are_refused() -> None:
    with pytest.raises(vcreg_fx.InsertionError, match="no argument padding"):
        vcreg_fx.insert(bert(), mask="padding")
    with pytest.raises(ValueError, match='mask="~src_key_padding_mask"'):
        VCRegConfig(mask="src_key_padding_mask")
    with pytest.raises(ValueError, match="names no function"):
        VCRegConfig(mask="nowhere:nothing")


def test_a_call_past_the_model_warns() -> None:
    model = bert()
    vcreg_fx.insert(model)
    with pytest.warns(UserWarning, match="without a call of the model"):
        model.encoder(torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("demean", ["statistics", "activations"])
def test_class_and_register_tokens(demean) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch14_reg4_dinov2", embed_dim=16, num_heads=2, depth=2, img_size=28
    ).double()
    images = torch.randn(3, 3, 28, 28, dtype=torch.float64)
    prefix = model.num_prefix_tokens
    assert prefix == 5

    def demeaned(h: Tensor) -> Tensor:
        return torch.cat([h[:, :prefix], h[:, prefix:] - h[:, prefix:].mean((0, 1))], dim=1)

    plain, kept = copy.deepcopy(model), []
    for block in plain.blocks:

        def after(m: nn.Module, a: object, h: Tensor) -> Tensor:
            h = demeaned(h) if demean == "activations" else h
            kept.append(h[:, prefix:])
            return h

        block.register_forward_hook(after)
    output = plain(images)
    loss = output.square().sum() + sum(vcreg_loss(h, layout="NLC") for h in kept)
    expected = gradients(plain, loss)
    vcreg_fx.insert(model, skip_tokens=prefix, demean=demean)
    found = model(images)
    torch.testing.assert_close(found, output)
    assert_alike(gradients(model, found.square().sum()), expected)
    assert vcreg_fx.sites(model)[0].samples == 3 * 4
    assert vcreg_fx.get_config(model)["skip_tokens"] == 5


def test_tokens_are_skipped_only_where_they_are_seen() -> None:
    with pytest.raises(vcreg_fx.InsertionError, match="skip_tokens"):
        vcreg_fx.insert(timm.create_model("resnet10t"), skip_tokens=1)
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    vcreg_fx.insert(model, "head", skip_tokens=1)  # one row an example
    assert vcreg_fx.sites(model)[0].positions is None


def test_measure_and_calibrate_see_the_samples_alone() -> None:
    model, given = bert(), tokens()
    vcreg_fx.insert(model)
    rows = vcreg_fx.measure(model, given, task)
    assert [row.n for row in rows] == [13, 13]
    found = vcreg_fx.calibrate(model, given, task, 0.5)
    assert [row.ratio for row in found.after] == pytest.approx([0.5, 0.5])


def test_fewer_than_two_samples_have_no_penalty() -> None:
    model, given = bert(), tokens((1,))
    vcreg_fx.insert(model)
    longer = {k: torch.nn.functional.pad(v, (0, 3)) for k, v in given.items()}
    with pytest.warns(UserWarning, match="less than two samples"):
        found = gradients(model, task(model(**longer)))
    plain = vcreg_fx.remove(copy.deepcopy(model))
    assert_alike(found, gradients(plain, task(plain(**longer))))
    values = vcreg_fx.metrics(model)
    assert values["vcreg/penalty"] == vcreg_fx.sites(model)[0].penalty == 0


class Counted(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_without_a_mask_nothing_is_added() -> None:
    counts = []
    for mask in ("auto", None):
        model, given = bert(), tokens()
        vcreg_fx.insert(model, mask=mask)
        with Counted() as counted:
            task(model(input_ids=given["input_ids"])).backward()
        counts.append(counted.count)
    assert counts[0] == counts[1]


def test_compiled_code_takes_each_calls_mask() -> None:
    torch.manual_seed(0)
    model = Padded()
    x = torch.randn(3, 7, 8)
    vcreg_fx.insert(model, example_inputs=(x[:2],))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for lengths in ((7, 4, 2), (7, 5, 1)):
        padding = ~tokens(lengths)["attention_mask"].bool()
        eager, found = (
            gradients(model, m(x, src_key_padding_mask=padding)[:, 0].square().sum())
            for m in (model, compiled)
        )
        for name, grad in found.items():
            torch.testing.assert_close(grad, eager[name], rtol=1e-4, atol=1e-6)
        assert vcreg_fx.sites(model)[0].samples == sum(lengths)


class Pooled(nn.Module):
    """Blocks over tokens, and a mean over those that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.block(self.embed(input_ids))
        kept = attention_mask[..., None].to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1))


def test_code_that_export_writes_says_that_it_follows_no_mask(tmp_path: Path) -> None:
    example = tuple(tokens().values())
    model = vcreg_fx.insert(Pooled(), rules.modules("block"), example_inputs=example)
    with pytest.warns(UserWarning, match="also those that attention_mask masks"):
        vcreg_fx.export(model, tmp_path / "one", example_inputs=example, check=False)
    with (
        pytest.warns(UserWarning, match="every position"),
        pytest.raises(vcreg_fx.ExportError, match="gradients"),
    ):
        vcreg_fx.export(model, tmp_path / "two", example_inputs=example)
    every = vcreg_fx.insert(Pooled(), rules.modules("block"), example_inputs=example, mask=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        vcreg_fx.export(every, tmp_path / "three", example_inputs=example)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_masks_in_compiled_code_of_any_size(backend: str, dynamic: bool | None) -> None:
    ids, mask = tokens().values()
    eager = vcreg_fx.insert(
        Pooled().double(), rules.modules("block"), alpha=1.0, beta=1.0, example_inputs=(ids, mask)
    )
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend=backend, dynamic=dynamic)
    for batch in ((ids, mask), (ids[:, :5], mask[:, :5]), (ids[:2], mask[:2])):
        for one, run in ((eager, eager), (model, compiled)):
            one.zero_grad()
            run(*batch).square().sum().backward()
        for p, q in zip(eager.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
