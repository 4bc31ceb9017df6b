"""Video transformers of the library transformers: random, from a folder, or pretrained by masking.

They need ``pip install "vcreg-fx[video]"``. Nothing is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..images import DataError

_NEW = ("classifier.", "fc_norm.")  # of a network for a task, where weights are of another one


@dataclass(frozen=True)
class VideoNetwork:
    """A network by its sizes.

    **Attributes:**

    - `kind`: ``"videomae"`` or ``"vivit"``.
    - `sizes`: of its configuration in transformers.
    - `decoder`: of VideoMAE, what reconstructs masked patches.
    """

    kind: str
    sizes: Mapping[str, float]
    decoder: Mapping[str, int] = field(default_factory=dict)


def _sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _decoder(width: int, layers: int, heads: int) -> dict[str, int]:
    return {f"decoder_{name}": size for name, size in _sizes(width, layers, heads).items()}


_SMALL = VideoNetwork("videomae", _sizes(384, 12, 6), _decoder(192, 4, 3))
_BASE = VideoNetwork("videomae", _sizes(768, 12, 12), _decoder(384, 4, 6))
VIDEO_NETWORKS: Mapping[str, VideoNetwork] = {
    "videomae-tiny": VideoNetwork(
        "videomae", {**_sizes(64, 4, 4), "initializer_range": 0.1}, _decoder(32, 1, 2)
    ),
    "videomae-small": _SMALL,
    "videomae-base": _BASE,
    "videomaev2-small": _SMALL,
    "videomaev2-base": _BASE,
    "vivit-base": VideoNetwork("vivit", _sizes(768, 12, 12)),
}
"""ViT-S and ViT-B as VideoMAE's and VideoMAEv2's code have them, ViViT-B, and a tiny one.

VideoMAEv2's networks are VideoMAE's with other weights.
"""


class VideoClassifier(nn.Module):
    """A network of transformers that returns its logits alone, shape (n, classes).

    **Arguments:**

    - `network`: a ``VideoMAEForVideoClassification`` or ``VivitForVideoClassification``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits of clips, shape (n, frames, 3, size, size)."""
        logits: Tensor = self.network(clips).logits
        return logits


def _config(name: str, shape: tuple[int, ...], **changes: Any) -> Any:
    """Return a configuration of transformers for clips of shape (frames, 3, size, size)."""
    import transformers

    known = VIDEO_NETWORKS[name]
    frames, channels, side, _ = shape
    patch = 16 if side >= 112 else side // (4 if side % 3 else 3)
    if frames % 2 or side % patch:
        raise DataError(
            f"{name} takes an even number of frames, and a size that is a multiple of {patch}; "
            f"these clips have {frames} frames of {side}×{side}."
        )
    given = {
        **known.sizes, **known.decoder, "num_frames": frames, "image_size": side,
        "num_channels": channels, "layer_norm_eps": 1e-6, **changes,
    }  # fmt: skip
    if known.kind == "vivit":
        return transformers.VivitConfig(tubelet_size=[2, patch, patch], **given)
    return transformers.VideoMAEConfig(patch_size=patch, tubelet_size=2, **given)


def build_video_network(name: str, shape: tuple[int, ...], classes: int) -> VideoClassifier:
    """Return one of `VIDEO_NETWORKS` with random weights.

    The side of a patch is 16; of clips smaller than 112, a third of theirs, or else a quarter.

    **Arguments:**

    - `shape`: of a clip: (frames, 3, size, size).

    **Raises:** `DataError` for a shape that does not fit; `ModuleNotFoundError` without
    transformers.
    """
    import transformers

    config = _config(name, shape, num_labels=classes)
    if VIDEO_NETWORKS[name].kind == "vivit":
        return VideoClassifier(transformers.VivitForVideoClassification(config))
    network = transformers.VideoMAEForVideoClassification(config)
    network.fc_norm.eps = config.layer_norm_eps  # as VideoMAE's code has it
    return VideoClassifier(network)


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Let a network leave out branches at random, sample by sample, up to a rate in its last block.

    Transformers' classes have dropout in the place of VideoMAE's stochastic depth, which it takes.
    """
    from torchvision.ops import StochasticDepth

    if not rate:
        return
    blocks: Any = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    for block, each in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        owners = [at.output for at in (block.attention, block) if hasattr(at, "output")]
        for owner in owners or [block]:  # two branches, or the one dropout that ViViT's share
            owner.dropout = StochasticDepth(each, "row").train(owner.training)


def scale_head(model: nn.Module, scale: float) -> None:
    """Make the classifier's random weights smaller, as VideoMAE's ``init_scale`` does."""
    with torch.no_grad():
        for parameter in model.get_submodule("network.classifier").parameters():
            parameter.mul_(scale)


# Weights ----------------------------------------------------------------------------------------


def pretrained_weights(
    name: str, path: str | Path, shape: tuple[int, ...], classes: int
) -> dict[str, Tensor]:
    """Return weights for `build_video_network` that lie in a folder or a file.

    **Arguments:**

    - `path`: a folder of transformers' VideoMAE or ViViT, with ``config.json``; or a checkpoint of
      VideoMAE's or VideoMAEv2's code, or a folder with one such file, as on the hub: of its code
      nothing is run. Classifiers and what only pretraining has are left out.
    - `name`, `shape`, `classes`: of the network that they are for.

    **Returns:** a state dict, which lacks the classifier, and the norm before it where the weights
    are those of pretraining.

    **Raises:** `DataError` if there is none, or it does not fit.
    """
    path = Path(path)
    given, known = _told(path), VIDEO_NETWORKS[name]
    if (kind := given.get("model_type")) in _CLASSES:
        _compare(name, path, "model_type", kind, known.kind)
        found = _of_transformers(name, path, shape, classes)
    else:
        found = convert_checkpoint(_read(_file(path)), str(path))
        heads = known.sizes["num_attention_heads"]  # which no shape tells
        said = given.get("model_config", {}).get("num_heads", heads)
        _compare(name, path, "num_heads", said, heads)
    model = build_video_network(name, shape, classes).state_dict()
    found = {f"network.{key}": value for key, value in found.items()}
    needed = {key for key in model if not key.removeprefix("network.").startswith(_NEW)}
    kept = {k: v for k, v in found.items() if k in model and ".classifier." not in k}
    if lacking := sorted(needed - set(kept)):
        raise DataError(
            f"{path} lacks {len(lacking)} of the {len(needed)} weights of {name}, the first is "
            f"{lacking[0].removeprefix('network.')}."
        )
    if other := sorted(k for k in found if k not in model and ".classifier." not in k):
        raise DataError(
            f"{path} is of another network than {name}, which has no place for {len(other)} of its "
            f"weights, the first is {other[0].removeprefix('network.')}."
        )
    for key, value in kept.items():
        if value.shape != model[key].shape:
            raise DataError(
                f"{path} is not of a {name} for clips of {shape[0]} frames of {shape[-1]}×"
                f"{shape[-1]}: {key.removeprefix('network.')} has the shape {tuple(value.shape)} "
                f"there, {tuple(model[key].shape)} here."
            )
    return kept


_CLASSES = {"videomae": "VideoMAEForVideoClassification", "vivit": "VivitForVideoClassification"}
_UNUSED = re.compile(  # by a classifier of transformers: what pretraining has, and a pooler
    r"^(decoder\.|mask_token$|encoder_to_decoder\.|(videomae\.)?layernorm\.|(vivit\.)?pooler\.)"
)


def _told(path: Path) -> Mapping[str, Any]:
    """Return what a folder's ``config.json`` says, if there is one, without running any code."""
    file = path / "config.json"
    try:
        found: Mapping[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise DataError(f"{file} is broken: {error}.") from error
    return found


def _compare(name: str, path: Path, item: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise DataError(
            f"{path} is of another network: its {item} is {found}, and that of {name} is {wanted}."
        )


def _of_transformers(
    name: str, path: Path, shape: tuple[int, ...], classes: int
) -> dict[str, Tensor]:
    import transformers

    wanted = _config(name, shape)
    kind = wanted.model_type
    given = type(wanted).from_pretrained(path)
    biases = "qkv_bias", "qv_bias"  # in earlier versions and in later ones
    for item in ("num_attention_heads", "num_hidden_layers", "hidden_act", *biases):
        _compare(name, path, item, getattr(given, item, True), getattr(wanted, item, True))
    given.num_labels, given.num_frames, given.image_size = classes, shape[0], shape[-1]
    if kind == "videomae":
        given.use_mean_pooling = True
    model, said = getattr(transformers, _CLASSES[kind]).from_pretrained(
        path, config=given, ignore_mismatched_sizes=True, output_loading_info=True
    )
    if other := sorted(key for key in said["unexpected_keys"] if not _UNUSED.match(key)):
        raise DataError(f"{path} holds {other[0]}, for which a {kind} of its sizes has no place.")
    missing = set(said["missing_keys"]) | {key for key, *_ in said["mismatched_keys"]}
    return {key: value for key, value in model.state_dict().items() if key not in missing}


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [
        file for file in sorted(path.glob("*"))
        if file.suffix in {".pth", ".pt", ".bin", ".safetensors"}
    ]  # fmt: skip
    if len(found) != 1:
        raise DataError(
            f"{path} holds {len(found)} files of weights, and one is needed: .pth, .pt, .bin or "
            ".safetensors; or a folder of transformers, with config.json."
        )
    return found[0]


def _read(path: Path) -> Mapping[str, Any]:
    """Return what a file holds; of PyTorch's, nothing is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader makes of a file that is none
        raise DataError(f"{path} holds no weights: {error}") from error
    for key in ("model", "module", "state_dict"):
        if isinstance(found.get(key), Mapping):
            inner: Mapping[str, Any] = found[key]
            return inner
    whole: Mapping[str, Any] = found
    return whole


_PREFIXES = re.compile(r"^((_orig_mod|module|model|backbone|encoder)\.)+")
_RENAMED = (
    (r"^patch_embed\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.attn\.([qv]_bias)$", r"videomae.encoder.layer.\1.attention.attention.\2"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"videomae.encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.norm1\.", r"videomae.encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"videomae.encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"videomae.encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"videomae.encoder.layer.\1.output.dense."),
    (r"^fc_norm\.", "fc_norm."),
    (r"^head\.", "classifier."),
)
_QKV = re.compile(r"^blocks\.(\d+)\.attn\.qkv\.weight$")
_LEFT_OUT = re.compile(r"^(decoder\.|mask_token$|encoder_to_decoder\.|norm\.|pos_embed$)")


def _biases() -> Mapping[str, str]:
    """Return what the biases of query and value are called in this transformers."""
    from transformers.models.videomae.modeling_videomae import VideoMAEConfig, VideoMAESelfAttention

    attention = VideoMAESelfAttention(VideoMAEConfig(hidden_size=4, num_attention_heads=1))
    older = hasattr(attention, "q_bias")  # up to 5.5 at the least
    names = ("q_bias", "v_bias") if older else ("query.bias", "value.bias")
    return dict(zip(("q_bias", "v_bias"), names, strict=True))


def convert_checkpoint(weights: Mapping[str, Any], name: str = "It") -> dict[str, Tensor]:
    """Return weights of VideoMAE's or VideoMAEv2's code under the names of transformers.

    Both have the names of ``modeling_finetune.py``: of pretraining with ``encoder.`` before them,
    of VideoMAEv2's folders with ``model.``. Query, key and value are one matrix there, and three
    here. The decoder of pretraining, its norm after the encoder, which fine-tuning replaces, and
    positions, which are computed, are left out.

    **Arguments:**

    - `name`: what an error calls it.

    **Raises:** `DataError` for a name that is none of these.
    """
    found: dict[str, Tensor] = {}
    biases = _biases()
    for key, value in weights.items():
        plain = key if key.startswith("encoder_to") else _PREFIXES.sub("", key)
        if _LEFT_OUT.match(plain):
            continue
        if match := _QKV.match(plain):
            place = f"videomae.encoder.layer.{match[1]}.attention.attention"
            for part, matrix in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{place}.{part}.weight"] = matrix.float()
            continue
        for pattern, new in _RENAMED:
            if re.match(pattern, plain):
                place = re.sub(pattern, new, plain)
                found[re.sub("[qv]_bias$", lambda name: biases[name[0]], place)] = value.float()
                break
        else:
            raise DataError(f"{name} is no checkpoint of VideoMAE: it holds {key!r}.")
    return found


# Pretraining by masking -------------------------------------------------------------------------


class MaskedPretraining(nn.Module):
    """VideoMAE's pretraining: tubes of patches are masked, the rest reconstructs them.

    **Arguments:**

    - `name`, `shape`: of a VideoMAE, see `build_video_network`.
    - `ratio`: of patches that are masked, the same at all times.
    """

    def __init__(self, name: str, shape: tuple[int, ...], ratio: float) -> None:
        import transformers

        super().__init__()
        if VIDEO_NETWORKS[name].kind != "videomae":
            raise DataError(f"{name} is not pretrained by masking; VideoMAEs are.")
        config = _config(name, shape, use_mean_pooling=False)
        self.network = transformers.VideoMAEForPreTraining(config)
        self._times = shape[0] // config.tubelet_size
        self._patches = (config.image_size // config.patch_size) ** 2
        self._masked = round(ratio * self._patches)
        if not 0 < self._masked < self._patches:
            raise DataError(f"masking={ratio} leaves or masks none of {self._patches} patches.")

    def forward(self, clips: Tensor) -> Tensor:
        """Return the loss of standardized clips, a 0-d tensor."""
        order = torch.rand(len(clips), self._patches, device=clips.device).argsort(dim=1)
        mask = (order < self._masked).repeat(1, self._times)  # times come first among patches
        loss: Tensor = self.network(clips, bool_masked_pos=mask).loss
        return loss

    def encoder(self) -> dict[str, Tensor]:
        """Return the encoder's weights under the names of a `VideoClassifier`."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if name.startswith("network.videomae.") and ".layernorm." not in name
        }
