"""The status of a run, read from its directory alone; imports no torch."""
