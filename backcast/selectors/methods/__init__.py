"""One file a selector."""
