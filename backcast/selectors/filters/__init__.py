"""One file a filter: which examples a selector may not see, and why."""
