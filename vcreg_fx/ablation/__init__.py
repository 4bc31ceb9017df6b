"""Placement ablations: trials, store, executors, tables, plots."""

from ._ablate import ablate as ablate
from ._records import Record as Record
from ._result import AblationResult as AblationResult
from ._result import report as report
from ._store import UnpublishedError as UnpublishedError
from ._task import AblationOptions as AblationOptions
from ._trials import AblationError as AblationError
from ._trials import Trial as Trial
