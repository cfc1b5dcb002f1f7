"""The registry of the tables and of their claims, the most wanted first: they are run and shown in this order."""

from __future__ import annotations

from benchmarks.paper.claim import Claim, PaperTable
from benchmarks.paper.tables import LOOKED_INTO, TABLES_OF_TRAINING
from benchmarks.paper.tables_of_modes import TABLES_OF_MODES

TABLES: tuple[PaperTable, ...] = (*TABLES_OF_TRAINING, *TABLES_OF_MODES, *LOOKED_INTO)
CLAIMS: dict[str, Claim] = {claim.name: claim for table in TABLES for claim in table.claims}
