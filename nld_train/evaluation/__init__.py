"""Evaluation of the weights in every decode mode: while training, on prompts, and by lm-evaluation-harness."""
