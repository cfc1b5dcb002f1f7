"""The paper's claims tested on small models: rows, claims, runner, statistics and the page (docs/paper.md)."""
