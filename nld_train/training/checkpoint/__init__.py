"""Checkpoints: writing, checking, finding, loading and keeping them."""
