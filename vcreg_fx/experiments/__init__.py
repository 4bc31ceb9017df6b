"""Experiments: the demo, the embedded ablation."""

from . import _digits_ablation
from ._demo import DemoResult as DemoResult
from ._demo import run_demo as run_demo
from ._digits import Split as Split
from ._digits import load_digits as load_digits
from ._gradient_check import SiteCheck as SiteCheck
from ._gradient_check import check_gradients as check_gradients
from ._measure import Measurements as Measurements
from ._observer import Observer as Observer
from ._rows import COLUMNS as COLUMNS
from ._rows import rows as rows
from ._settings import DemoSettings as DemoSettings
from ._spectra import draw_spectra as draw_spectra
from ._words import conclusions as conclusions

digits_ablation = _digits_ablation
