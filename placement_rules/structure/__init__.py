"""What a recording shows of the network's structure: merges of branches, blocks, classifiers."""

from ._blocks import BlockSearch as BlockSearch
from ._classifiers import classified as classified
from ._classifiers import last_layers as last_layers
from ._merges import helper_add as helper_add
from ._merges import residual_adds as residual_adds
from ._places import Places as Places
from ._places import arguments_of as arguments_of
from ._places import places_of as places_of
