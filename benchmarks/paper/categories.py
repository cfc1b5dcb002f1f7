"""Questions with categories, as `nld-acceptance` and `nld-bound` read them, from held-out conversations with kinds.

python -m benchmarks.paper.categories held-out.jsonl questions.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nld_train.files import write_atomically


def main(source: str, target: str) -> None:
    """Writes the user's turns of each conversation, under its kind as category."""
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    questions = [
        {
            "category": row["kind"],
            "turns": [message["content"] for message in row["messages"] if message["role"] == "user"],
        }
        for row in rows
    ]
    write_atomically(Path(target), "".join(json.dumps(question) + "\n" for question in questions))


if __name__ == "__main__":
    main(*sys.argv[1:])
