"""The papers' experiments: search on validation images, test once, compare with the paper."""

from ._arm import Arm as Arm
from ._arm import vcreg_arms as vcreg_arms
from ._errors import ReproductionError as ReproductionError
from ._evidence import write_evidence as write_evidence
from ._experiment import Experiment as Experiment
from ._experiment import Metric as Metric
from ._experiment import Paper as Paper
from ._image_task import ImageTask as ImageTask
from ._image_task import Roles as Roles
from ._networks import NETWORKS as NETWORKS
from ._networks import CifarResNet as CifarResNet
from ._outcome import Outcome as Outcome
from ._preset import PAPER_GRID as PAPER_GRID
from ._preset import SMALL_GRID as SMALL_GRID
from ._preset import Preset as Preset
from ._registry import EXPERIMENTS as EXPERIMENTS
from ._render import render as render
from ._reproduce import reproduce as reproduce
