"""Experiments: the demo, the embedded ablation."""

from . import _digits_ablation
from ._demo import Observer as Observer
from ._demo import run_demo as run_demo
from ._demo_report import COLUMNS as COLUMNS
from ._demo_report import DemoResult as DemoResult
from ._demo_report import DemoSettings as DemoSettings
from ._demo_report import Measurements as Measurements
from ._demo_report import conclusions as conclusions
from ._demo_report import draw_spectra as draw_spectra
from ._demo_report import rows as rows
from ._gradient_check import SiteCheck as SiteCheck
from ._gradient_check import check_gradients as check_gradients
from .images._digits import Split as Split
from .images._digits import load_digits as load_digits

digits_ablation = _digits_ablation
