"""Questions with categories, as `nld-acceptance` and `nld-bound` read them, from conversations with kinds.

python -m benchmarks.paper.categories held-out.jsonl questions.jsonl --of-each 4
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from nld_train.files import write_atomically


def main(arguments: list[str] | None = None) -> None:
    """Writes the user's turns of the first conversations of each kind, under the kind as category."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what `nld-data tasks` writes")
    parser.add_argument("target", type=Path, help="JSONL to write")
    parser.add_argument("--of-each", type=int, required=True, metavar="N", help="questions of each kind, at most")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.source.read_text(encoding="utf-8").splitlines()]
    write_atomically(options.target, "".join(json.dumps(row) + "\n" for row in questions(rows, options.of_each)))


def questions(rows: list[dict[str, Any]], of_each: int) -> Iterator[dict[str, Any]]:
    """`category` and `turns` of the first rows of each kind: the first of every kind, then the second, and so on."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    for row in chain.from_iterable(islice(zip_longest(*kinds.values()), of_each)):
        if row is not None:
            turns = [message["content"] for message in row["messages"] if message["role"] == "user"]
            yield {"category": row["kind"], "turns": turns}


if __name__ == "__main__":
    main()
