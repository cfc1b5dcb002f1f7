"""The decode algorithms in plain torch, and what they share: slots, KV cache lengths, sampling, stop conditions."""
