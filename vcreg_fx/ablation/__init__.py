"""Placement ablations: trials, store, executors, tables, plots."""

from ._ablate import ablate as ablate
from ._errors import AblationError as AblationError
from ._options import AblationOptions as AblationOptions
from ._record import Record as Record
from ._result import AblationResult as AblationResult
from ._result import report as report
from ._trial import Trial as Trial
