"""The settings of a run: read, checked and explained, without importing torch.

`schema` says what there is, `load` reads it, `validate` refuses what cannot be, `plan` and `counts` work out what
follows from it, and `compose` finds the YAML files.
"""
