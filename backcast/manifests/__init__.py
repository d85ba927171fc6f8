"""The file of a selection: written, read, checked against its data, compared, exported."""

from backcast.manifests.check import Report, check
from backcast.manifests.manifest import Manifest, meta_path
from backcast.manifests.subset import load_subset

__all__ = ["Manifest", "Report", "check", "load_subset", "meta_path"]
