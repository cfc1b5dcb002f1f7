"""The run and its optimizer step: processes, micro-batches, pipeline schedule, optimizer."""
