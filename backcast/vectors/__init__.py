"""Rows of numbers: unit length, nearest neighbours, clusters and near-duplicates; knows nothing of gradients."""

from backcast.vectors.features import Features, Readable, sample
from backcast.vectors.fixed import fixed
from backcast.vectors.graph import neighbour_graph
from backcast.vectors.groups import near_duplicates, near_pairs
from backcast.vectors.index import Index, choose
from backcast.vectors.kmeans import Clusters, kmeans
from backcast.vectors.whitening import whitened

__all__ = [
    "Clusters",
    "Features",
    "Index",
    "Readable",
    "choose",
    "fixed",
    "kmeans",
    "near_duplicates",
    "near_pairs",
    "neighbour_graph",
    "sample",
    "whitened",
]
