"""Reading examples, their content ids, and the corpora that install with the package."""

from backcast.data.conversations import conversation
from backcast.data.costs import costs
from backcast.data.examples import Example, Examples, Rows, content_id
from backcast.data.images import open_image
from backcast.data.places import map_names, split_names
from backcast.data.readers import read_examples
from backcast.data.tables import load_table

__all__ = [
    "Example",
    "Examples",
    "Rows",
    "content_id",
    "conversation",
    "costs",
    "load_table",
    "map_names",
    "open_image",
    "read_examples",
    "split_names",
]
