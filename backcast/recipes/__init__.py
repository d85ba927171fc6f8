"""Whole runs made of the parts. Each is imported by itself: together they take many seconds."""
