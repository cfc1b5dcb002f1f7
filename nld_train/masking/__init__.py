"""Noise and visibility: noise schedules, masked positions, blocks, and the rule that attention masks are made from."""
