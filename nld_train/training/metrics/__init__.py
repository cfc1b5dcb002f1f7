"""The metrics of a run, and where they are written: JSONL, console, Weights & Biases, summary, report."""
