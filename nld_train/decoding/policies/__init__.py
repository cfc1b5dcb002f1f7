"""Commit policies: which masked positions of a block a denoising pass commits. One file each, listed in `registry`."""
