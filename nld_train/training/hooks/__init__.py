"""Hooks: what runs between two optimizer steps, such as validation."""
