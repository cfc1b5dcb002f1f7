"""The types of rotary embedding that the model computes, which are also those that can be imported."""

from __future__ import annotations

# By `rope_type`: the keys of `RopeParameters` that it needs as numbers above 0. The others of these keys must be null.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "yarn": ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
}
