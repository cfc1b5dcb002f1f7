"""What an earlier report has of a table that the folder of this one has measured less of."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]
Claims = list[dict[str, Any]]


def with_earlier(figures: Figures, claims: Claims, earlier: dict[str, Any] | None) -> tuple[Figures, Claims]:
    """The figures and claims, table by table those of the report that has more measurements of it.

    A folder need not hold every table: what one machine measured stays while another adds to it. Figures of another
    design, or of a table that has other lines, columns or claims by now, are dropped.

    Args:
        figures: of this report, as of `results.all_figures`.
        claims: of this report.
        earlier: content of the `paper.json` that it replaces.
    """
    if earlier is None or earlier["figures"]["design"] != figures["design"]:
        return figures, claims
    before = earlier["figures"]
    by_name = {claim["name"]: claim for claim in earlier["claims"]}
    changed = {_table(claim) for claim in claims if claim["name"] not in by_name}
    kept = {
        name
        for name, rows in figures["tables"].items()
        if name not in changed
        and _shape(found := before["tables"].get(name, {})) == _shape(rows)
        and _measured(found) > _measured(rows)
    }
    merged = {
        "design": figures["design"],
        **{
            part: {name: (before if name in kept else figures)[part][name] for name in figures[part]}
            for part in ("tables", "curves", "origins")
        },
    }
    return merged, [by_name[claim["name"]] if _table(claim) in kept else claim for claim in claims]


def _shape(rows: dict[str, Any]) -> dict[str, list[str]]:
    """The columns of each line."""
    return {label: list(row) for label, row in rows.items()}


def _measured(rows: dict[str, Any]) -> int:
    """Number of measurements in a table."""
    return sum(len(cell["values"]) for row in rows.values() for cell in row.values())


def _table(claim: dict[str, Any]) -> str:
    return str(claim["name"].partition("/")[0])
