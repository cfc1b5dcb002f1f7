"""What a source of `nld-data prepare` is read as."""

from __future__ import annotations

from nld_train.data.readers import documents
from nld_train.data.sources import SourceSettings, plan_shards


def source_texts(source: object, settings: SourceSettings) -> list[str]:
    """The texts of a path or an address, in order."""
    shards = plan_shards([str(source)], settings)
    return [document.text for pieces in shards for piece in pieces for document in documents(piece, settings)]
