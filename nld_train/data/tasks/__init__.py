"""Questions with exactly one right answer, as conversations: what `nld-data tasks` writes (docs/tasks.md)."""
