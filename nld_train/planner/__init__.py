"""Layouts for a run and a cluster: memory, step time and duration of every legal one; imports no torch."""
