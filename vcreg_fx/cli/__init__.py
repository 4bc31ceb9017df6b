"""The command ``vcreg-fx``."""

from ._app import main as main
