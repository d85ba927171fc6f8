"""`backcast split`: which of the modalities a score comes from, and the page about it."""
