"""Measurements as torchmetrics metrics: fed batch by batch, joined over ranks.

They need the package torchmetrics (``pip install "vcreg-fx[evaluation]"``).
"""

from ._classes import ClassDistanceNormalizedVariance as ClassDistanceNormalizedVariance
from ._classes import NearestClassCenterAccuracy as NearestClassCenterAccuracy
from ._statistics import FeatureStatistics as FeatureStatistics
