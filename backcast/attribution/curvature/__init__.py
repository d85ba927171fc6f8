"""Curvature of the training loss by weight matrices: Kronecker-factored, and solves with the exact one."""

from backcast.attribution.curvature.hessian import refine
from backcast.attribution.curvature.kronecker import Corrections, Covariances, Curvature, fit, labels
from backcast.attribution.curvature.passes import Matrices, Passes, at_rest
from backcast.attribution.curvature.products import InnerProducts, chunks, mean_gradients

__all__ = [
    "Corrections",
    "Covariances",
    "Curvature",
    "InnerProducts",
    "Matrices",
    "Passes",
    "at_rest",
    "chunks",
    "fit",
    "labels",
    "mean_gradients",
    "refine",
]
