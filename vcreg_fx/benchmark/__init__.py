"""What VCReg costs: the papers' table of timings, on this machine.

Not part of the core: needs timm or torchvision for the models, and matplotlib for pictures.
"""

from ._bench import bench as bench
from ._one_site import Scaling as Scaling
from ._one_site import measure_scaling as measure_scaling
from ._result import BenchResult as BenchResult
from ._result import ModelResult as ModelResult
from ._result import Row as Row
from ._result import write_results as write_results
from ._sites import SiteKind as SiteKind
from ._sites import SitesOfModel as SitesOfModel
from ._sites import SitesResult as SitesResult
from ._sites import SitesRow as SitesRow
from ._sites import bench_sites as bench_sites
from ._variants import VARIANTS as VARIANTS
from ._variants import BenchError as BenchError
