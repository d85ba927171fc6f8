"""Reading examples, their content ids, and the corpora that install with the package."""

from backcast.data.conversations import conversation
from backcast.data.examples import Example, Examples, Rows, content_id
from backcast.data.images import open_image
from backcast.data.readers import load_table, read_examples

__all__ = [
    "Example",
    "Examples",
    "Rows",
    "content_id",
    "conversation",
    "load_table",
    "open_image",
    "read_examples",
]
