"""The commands, one module each: their arguments, and what they call. Nothing heavy is imported before it is needed."""
