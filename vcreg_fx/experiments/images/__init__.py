"""Labelled images: embedded, packaged, or the papers' through torchvision."""

from ._class_file import read_classes as read_classes
from ._errors import DataError as DataError
from ._groups import CIFAR100_SUPERCLASSES as CIFAR100_SUPERCLASSES
from ._groups import FASHION_GROUPS as FASHION_GROUPS
from ._image_set import ImageData as ImageData
from ._image_set import ImageSet as ImageSet
from ._load import DATA as DATA
from ._load import load_images as load_images
from ._long_tail import long_tail_counts as long_tail_counts
from ._long_tail import long_tail_indices as long_tail_indices
from ._long_tail import shot_groups as shot_groups
from ._split import balanced_indices as balanced_indices
from ._split import split_indices as split_indices
