"""Attention over one or two streams: backends that follow `masking.visibility` and differ only in speed."""
