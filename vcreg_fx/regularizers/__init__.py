"""What is applied at a site."""

from ._choice import Penalize as Penalize
from ._choice import choose as choose
from ._functions import InjectGradient as InjectGradient
from ._functions import Penalty as Penalty
from ._functions import Settings as Settings
from ._functions import naive_penalty as naive_penalty
from ._gradient import Statistics as Statistics
from ._gradient import penalty_gradient as penalty_gradient
from ._moments import Moments as Moments
from ._moments import reference_mean as reference_mean
from ._moments import start_moments as start_moments
from ._operator import exported_vcreg as exported_vcreg
from ._precision import autocast_enabled as autocast_enabled
from ._precision import autocast_off as autocast_off
from ._precision import product_dtype as product_dtype
from ._precision import working_dtype as working_dtype
