"""The file of a selection: written, read, checked against its data, compared, exported."""

from backcast.manifests.check import Report, check
from backcast.manifests.diff import Difference, diff
from backcast.manifests.export import export
from backcast.manifests.manifest import Manifest, meta_path
from backcast.manifests.sampler import SubsetSampler
from backcast.manifests.subset import load_subset

__all__ = [
    "Difference",
    "Manifest",
    "Report",
    "SubsetSampler",
    "check",
    "diff",
    "export",
    "load_subset",
    "meta_path",
]
