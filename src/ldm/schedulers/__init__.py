"""The forward and the reverse process. Nothing here knows a network: a solver is handed a function."""

from ldm.schedulers.forward import CLEAN, Level, Levels, Schedule, linear, scaled_linear
from ldm.schedulers.prediction import EPS, X0, Prediction, V
from ldm.schedulers.reverse import ancestral, step
from ldm.schedulers.samplers import Sampler, sampler

__all__ = [
    "CLEAN", "EPS", "Level", "Levels", "Prediction", "Sampler", "Schedule", "V", "X0",
    "ancestral", "linear", "sampler", "scaled_linear", "step",
]  # fmt: skip
