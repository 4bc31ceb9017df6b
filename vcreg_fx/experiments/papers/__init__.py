"""The papers' experiments: search on validation images, test once, compare with the paper."""

from ._experiment import PAPER_GRID as PAPER_GRID
from ._experiment import SMALL_GRID as SMALL_GRID
from ._experiment import Arm as Arm
from ._experiment import Experiment as Experiment
from ._experiment import Metric as Metric
from ._experiment import Paper as Paper
from ._experiment import Preset as Preset
from ._experiment import ReproductionError as ReproductionError
from ._experiment import vcreg_arms as vcreg_arms
from ._image_task import ImageTask as ImageTask
from ._image_task import Roles as Roles
from ._networks import NETWORKS as NETWORKS
from ._networks import CifarResNet as CifarResNet
from ._outcome import Outcome as Outcome
from ._outcome import write_evidence as write_evidence
from ._render import render as render
from ._reproduce import EXPERIMENTS as EXPERIMENTS
from ._reproduce import reproduce as reproduce
