"""What a run measures, and where it is written: JSONL, console, Weights & Biases, summary, report."""
