"""A trained model in Python: pictures in, results out."""

from ifr.prediction.masks import Mask
from ifr.prediction.model import Model, load
from ifr.prediction.result import Detection, Result
from ifr.prediction.video import Frame

__all__ = ["Detection", "Frame", "Mask", "Model", "Result", "load"]
