"""The exceptions of this library. `configs/errors.py` shows their hierarchy."""

from .configs.errors import *  # noqa: F403
