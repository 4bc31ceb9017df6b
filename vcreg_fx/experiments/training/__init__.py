"""One short trainer, shared by all experiments."""

from ._distributed import Processes as Processes
from ._distributed import processes as processes
from ._predict import accuracy as accuracy
from ._predict import predict as predict
from ._settings import TrainSettings as TrainSettings
from ._stop import Stopped as Stopped
from ._trainer import fit as fit
