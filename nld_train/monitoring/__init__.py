"""Where a run stands, read from its directory alone; imports no torch."""
