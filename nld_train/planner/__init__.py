"""Which layout suits a run and a cluster: memory, step time and days of every legal one; imports no torch."""
