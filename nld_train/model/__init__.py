"""Ministral3 as a Megatron-Core model: layer specs, two-stream attention, rotary embedding, head."""
