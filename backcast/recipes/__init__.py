"""Whole runs made of the parts."""

from backcast.recipes.demo import demo
from backcast.recipes.one_shot import select_subset

__all__ = ["demo", "select_subset"]
