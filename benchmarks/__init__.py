"""Measurements: one command per question, each printing figure, limit and ratio, and keeping them as JSON."""
