"""Engines: one forward of a model over a static KV cache, behind one protocol."""
