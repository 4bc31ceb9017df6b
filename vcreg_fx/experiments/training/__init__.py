"""One short trainer, shared by all experiments."""

from ._batches import accuracy as accuracy
from ._batches import predict as predict
from ._distributed import Processes as Processes
from ._distributed import processes as processes
from ._resume import Stopped as Stopped
from ._settings import TrainSettings as TrainSettings
from ._trainer import fit as fit
