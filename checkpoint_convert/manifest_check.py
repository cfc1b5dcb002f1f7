"""What export and verify compare with the manifest of a Megatron checkpoint before they read anything else of it.

Not the shards (`*.distcp`): each piece in them has a CRC-32 of its own, which is compared when the piece is read, so
that nothing is read twice. `nld_train.training.checkpoint.manifest` compares them too, where all of a checkpoint is
needed.
"""

from __future__ import annotations

from pathlib import Path

from nld_train.errors import UserError
from nld_train.training.checkpoint.manifest import MANIFEST, Checksums, ManifestError, checksums, read_manifest

SHARD = ".distcp"
_PICKLES = (".metadata", "common.pt")


def refuse_damage(directory: Path) -> None:
    """Compares the size of every file of a checkpoint, and the content of all but its shards, with the manifest.

    Raises:
        UserError: there is no manifest, a file is not what was written, or a pickle is there that it does not list.
    """
    listed = _listed_files(directory)
    for name in _PICKLES:
        if (directory / name).exists() and name not in listed:
            raise UserError(f"{directory / name}: is not in {MANIFEST}, and will not be unpickled")
    for name, (size, _) in listed.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path}: is missing or does not have its {size} bytes; the checkpoint is damaged")
    for name, entry in listed.items():
        path = directory / name
        if path.suffix != SHARD and checksums([path])[path.name] != entry:
            raise UserError(f"{path}: does not have the content that was written (checksum)")


def _listed_files(directory: Path) -> Checksums:
    try:
        return read_manifest(directory)
    except ManifestError as error:
        raise UserError(f"{directory / MANIFEST}: {error}; the checkpoint is damaged") from error
