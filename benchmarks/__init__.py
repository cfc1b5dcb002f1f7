"""Measurements: one command per question; each prints a figure, its limit and their ratio, and writes them as JSON."""
