"""`backcast select`: from a model, a pool and a target, or from scores, to a manifest; and the page about it."""
