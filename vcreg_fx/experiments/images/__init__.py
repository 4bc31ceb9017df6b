"""Labelled images: embedded, packaged, or the papers' through torchvision."""

from ._datasets import CIFAR100_SUPERCLASSES as CIFAR100_SUPERCLASSES
from ._datasets import DATA as DATA
from ._datasets import GLYPHS as GLYPHS
from ._datasets import IMAGENET_SUBSETS as IMAGENET_SUBSETS
from ._datasets import load_images as load_images
from ._datasets import read_classes as read_classes
from ._fashion_mnist import FASHION_GROUPS as FASHION_GROUPS
from ._glyphs import ALPHABETS as ALPHABETS
from ._glyphs import UNSEEN as UNSEEN
from ._glyphs import Glyphs as Glyphs
from ._glyphs import draw_glyphs as draw_glyphs
from ._image_set import DataError as DataError
from ._image_set import ImageData as ImageData
from ._image_set import ImageSet as ImageSet
from ._image_set import balanced_indices as balanced_indices
from ._image_set import long_tail_counts as long_tail_counts
from ._image_set import long_tail_indices as long_tail_indices
from ._image_set import shot_groups as shot_groups
from ._image_set import split_indices as split_indices
