"""Data sets by name; the papers' through torchvision's loaders."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._digits import digits
from ._fashion_mnist import fashion_mnist
from ._glyphs import LABELS, glyphs
from ._image_set import DataError, ImageData, ImageSet

DATA = ("digits", "glyphs", "glyphs-200k", "fashion-mnist", "cifar10", "cifar100", "imagenet")
"""The data sets that experiments train on."""

GLYPHS = ("glyphs", "glyphs-unseen", *(f"glyphs-{label}" for label in LABELS))
"""The glyphs, other alphabets, and the glyphs with other labels."""

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

CIFAR100_SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""The 20 superclasses of CIFAR100's 100 classes, as its authors publish them."""


def _subsets() -> dict[str, dict[str, tuple[str, ...]]]:
    found = json.loads(Path(__file__).with_name("imagenet_subsets.json").read_text("utf-8"))
    return {
        subset: {group: tuple(names) for group, names in groups.items()}
        for subset, groups in found.items()
    }


IMAGENET_SUBSETS: Mapping[str, Mapping[str, tuple[str, ...]]] = _subsets()
"""Table 5's subsets of ImageNet: name → superclass → class folders, equally many of each.

The superclasses are those of Engstrom et al. 2019. The classes below them follow the hypernyms of
WordNet 3.0 (© 2006 Princeton University), and of those the first by their number are taken.
"""


RECIPES: Mapping[str, tuple[int, int, str, float]] = {
    "torchvision": (176, 232, "TrivialAugmentWide", 0.1),
    "autoaugment": (224, 256, "AutoAugment", 0.0),
}
"""What torchvision's recipes do to ImageNet: crops to train on, the resize before crops of 224 to
measure on, the policy, and how often a part is erased. The first is that for ConvNeXts and the
second version of ResNet-50, the other that for ViT-B/32."""


def load_images(
    name: str,
    root: str | Path | None = None,
    *,
    augment: str = "none",
    classes: str | Path | None = None,
    size: int | None = None,
) -> ImageData:
    """Return a data set by its name.

    **Arguments:**

    - `name`: one of `DATA` or `GLYPHS`.
    - `root`: its folder. The digits need none, Fashion-MNIST has a default, and glyphs are kept in
      it, if it is given.
    - `augment`: of the training images: ``"none"``, ``"crop"`` (CIFAR) or ``"torchvision"``, what
      torchvision's recipe does to an image; ``"autoaugment"`` is that for ViTs (ImageNet).
      ``"pictures"`` leaves those of CIFAR and ImageNet as they are read, for what makes views.
    - `classes`: one of `IMAGENET_SUBSETS`, or a class file for ImageNet, see `read_classes`.
    - `size`: the side of glyphs, of Fashion-MNIST's images, which are padded from 28, or of
      ImageNet's crops to measure on (224; those to train on have 176, as torchvision's recipe has
      it); the others have 32.

    **Raises:** `DataError` for an unknown name, for an augmentation that pictures in files do not
    have, or if the data is not there.
    """
    if classes is not None and name != "imagenet":
        raise DataError("--classes chooses among ImageNet's classes: --data imagenet.")
    if name == "digits":
        return digits()
    if name == "glyphs-200k":
        return glyphs("glyphs", 200_000, 20_000, size or 32, root=root)
    if name in GLYPHS:
        return glyphs(name, size=size or 32, root=root)
    if name == "fashion-mnist":
        return fashion_mnist(root, size or 28)
    if name in {"cifar10", "cifar100"}:
        return cifar(name, root, augment)
    if name == "imagenet":
        return imagenet(root, augment, classes, size or 224)
    near = difflib.get_close_matches(name, {*DATA, *GLYPHS}, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(f"There is no data set {name!r}.{hint} There are {', '.join(DATA)}.")


def cifar(name: str, root: str | Path | None, augment: str) -> ImageData:
    """Return CIFAR10 or CIFAR100, with the random crops and flips of its long-tailed protocol."""
    from torchvision import datasets
    from torchvision.transforms import v2

    _check_augment(name, augment, ("none", "crop", "torchvision", "pictures"))
    kind = getattr(datasets, name.upper())
    plain = prepare([], *_CIFAR)
    crop: list[Any] = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    wide = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    changes = {"none": [], "crop": crop, "torchvision": [*crop, wide]}
    after = [v2.RandomErasing(0.1)] if augment == "torchvision" else []
    changed = None if augment == "pictures" else prepare(changes[augment], *_CIFAR, after)
    train, augmented, test = (
        open_data(kind, root, train=part, transform=change)
        for part, change in ((True, plain), (True, changed), (False, plain))
    )
    groups = by_label(CIFAR100_SUPERCLASSES) if name == "cifar100" else {}
    return ImageData(
        name.upper(),
        ImageSet(train, _targets(train), augmented),
        ImageSet(test, _targets(test)),
        tuple(train.classes),
        groups,
        None if root is None else Path(root),
        _CIFAR,
    )


def imagenet(
    root: str | Path | None, augment: str, classes: str | Path | None, size: int = 224
) -> ImageData:
    """Return ImageNet (``train`` and ``val`` in `root`), or the subset that a class file names."""
    from torchvision import datasets
    from torchvision.transforms import v2

    _check_augment("imagenet", augment, ("none", *RECIPES, "pictures"))
    crop, resize, policy, erasing = RECIPES.get(augment, RECIPES["torchvision"])
    plain = prepare(
        [v2.Resize(round(size * resize / 224)), v2.CenterCrop(size)], *IMAGENET_STATISTICS
    )
    changes = [
        v2.RandomResizedCrop(round(size * crop / 224)),
        v2.RandomHorizontalFlip(),
        getattr(v2, policy)(interpolation=v2.InterpolationMode.BILINEAR),
    ]
    mixed = {
        "none": plain,
        "pictures": None,
    }.get(augment, prepare(changes, *IMAGENET_STATISTICS, [v2.RandomErasing(erasing)]))
    folder = None if root is None else Path(root)
    sets = [
        open_data(datasets.ImageFolder, None if folder is None else folder / part, transform=change)
        for part, change in (
            ("train", plain),
            ("train", mixed),
            ("val", plain),
        )
    ]
    train = ImageSet(sets[0], _targets(sets[0]), sets[1])
    test = ImageSet(sets[2], _targets(sets[2]))
    names = tuple(sets[0].classes)
    if classes is None:
        return ImageData(
            "ImageNet", train, test, names, root=folder, statistics=IMAGENET_STATISTICS
        )
    groups = read_classes(classes)
    wanted = [name for members in groups.values() for name in members]
    if missing := sorted(set(wanted) - set(names)):
        raise DataError(f"{folder} has no class folder {', '.join(missing)}, named in {classes}.")
    chosen = [names.index(name) for name in wanted]
    labels = {name: label for label, name in enumerate(wanted)}
    return ImageData(
        f"ImageNet ({Path(classes).stem})",
        train.of_classes(chosen),
        test.of_classes(chosen),
        tuple(wanted),
        {group: tuple(labels[name] for name in members) for group, members in groups.items()},
        folder,
        IMAGENET_STATISTICS,
    )


def _check_augment(name: str, augment: str, known: Sequence[str]) -> None:
    if augment not in known:
        raise DataError(
            f"{name} has no augmentation {augment!r}, only {', '.join(known)}. Take other data, or "
            "from Python a preset with one of these: presets(…).but(augment=…)."
        )


def by_label(groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return groups of names as groups of labels, where labels follow the names' alphabet."""
    label = {
        name: i for i, name in enumerate(sorted(n for group in groups.values() for n in group))
    }
    return {group: tuple(label[name] for name in names) for group, names in groups.items()}


def read_classes(path: str | Path) -> Mapping[str, tuple[str, ...]]:
    """Read superclasses from a JSON file: ``{"dog": ["n02085620", …], …}``.

    The names are those of the class folders. Only these classes are used.

    **Arguments:**

    - `path`: the file, or one of `IMAGENET_SUBSETS`.

    **Raises:** `DataError` if the file holds something else, or a class twice; `OSError` if it
    cannot be read.
    """
    if str(path) in IMAGENET_SUBSETS:
        return IMAGENET_SUBSETS[str(path)]
    form = '{"superclass": ["class folder", …], …}'
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no JSON ({error}). A class file has the form {form}."
        ) from error
    if (
        not isinstance(found, dict)
        or len(found) < 2
        or not all(isinstance(names, list) and names for names in found.values())
    ):
        raise DataError(
            f"{path} must name two superclasses or more, with one class or more each: {form}."
        )
    classes = [str(name) for names in found.values() for name in names]
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{path} names {', '.join(twice)} twice; a class has one superclass.")
    return {group: tuple(map(str, names)) for group, names in found.items()}


def prepare(
    changes: list[Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    after: list[Any] | None = None,
) -> Callable[[Any], Tensor]:
    """Return what makes a standardized tensor of a picture, after changes and before others."""
    from torchvision.transforms import v2

    steps = [v2.ToImage(), *changes, v2.ToDtype(torch.float32, scale=True)]
    found: Callable[[Any], Tensor] = v2.Compose(
        [*steps, v2.Normalize(list(mean), list(std)), *(after or []), v2.ToPureTensor()]
    )
    return found


def open_data(kind: Any, root: str | Path | None, **arguments: Any) -> Any:
    """Return a data set of torchvision's.

    **Raises:** `DataError` that says where to get it.
    """
    name = kind.__name__
    if root is None:
        raise DataError(f"{name} has to be read from a folder: --data-root DIR.")
    try:
        return kind(str(root), **arguments)
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"torchvision finds no {name} in {root}: {error} Nothing is downloaded here; put it "
            f"there first, for example by torchvision.datasets.{name}({str(root)!r}, "
            "download=True), or give another --data-root."
        ) from error


def _targets(dataset: Any) -> Tensor:
    return torch.tensor(dataset.targets)
