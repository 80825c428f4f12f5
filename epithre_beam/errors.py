"""The errors of this library: see `configs/errors.py` for the tree."""

from .configs.errors import *  # noqa: F403
