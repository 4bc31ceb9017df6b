"""VCReg's gradient: the configuration, the closed form, the autograd nodes, the operators."""

from ._autograd import SITE as SITE
from ._autograd import Calls as Calls
from ._autograd import InjectGradient as InjectGradient
from ._autograd import Penalty as Penalty
from ._autograd import Settings as Settings
from ._autograd import inject_gradient_at as inject_gradient_at
from ._autograd import naive_penalty as naive_penalty
from ._autograd import refuse_batches as refuse_batches
from ._closed_form import penalty_gradient as penalty_gradient
from ._closed_form import strength as strength
from ._config import VCRegConfig as VCRegConfig
from ._config import check_coefficient as check_coefficient
from ._exported import exported_vcreg as exported_vcreg
from ._moments import Moments as Moments
from ._moments import present_sum as present_sum
from ._moments import reference_mean as reference_mean
from ._moments import start_moments as start_moments
from ._numbers import Numbers as Numbers
from ._precision import autocast_enabled as autocast_enabled
from ._precision import autocast_off as autocast_off
from ._precision import product_dtype as product_dtype
from ._precision import working_dtype as working_dtype
from ._ranks import GroupSum as GroupSum
from ._ranks import group_of as group_of
from ._regularizer import Penalize as Penalize
from ._regularizer import choose as choose
