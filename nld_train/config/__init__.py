"""The settings of a run: read, checked and explained, without importing torch.

`schema` declares the keys, `load` reads them, `validate` refuses invalid combinations, `plan` and `counts` derive
steps, tokens and FLOPs, and `compose` finds and composes the YAML files.
"""
