"""Stage kinds: the trained weights, the streams and the optimizer step of a stage."""
