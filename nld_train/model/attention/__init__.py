"""Attention over one or two streams: backends that agree with `masking.visibility` and differ only in speed."""
