"""How held-out losses are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import INDENT, Curve, Metric, Panel, cost_text

_DOTS = {"marker": "."}


class ValidationMetric(Metric):
    """Held-out losses: `ar_loss`, and `diffusion_loss` by noise level."""

    def lines(self, value: Record) -> list[str]:
        """See `Metric.lines`: both losses, and the fraction of the time that validation takes."""
        levels = "  ".join(f"t={level} {loss:.4f}" for level, loss in value["diffusion_loss"].items())
        losses = f"ar {value['ar_loss']:.4f}" + (f"  diffusion {levels}" if levels else "")
        return [f"{INDENT}validation  {losses}  {cost_text(value, self.name)}"]

    def panels(self, records: Sequence[Record]) -> list[Panel]:
        """See `Metric.panels`: the AR loss, and a curve per noise level."""
        measured = [(record["tokens"], record[self.name]) for record in records]
        curves = [Curve("AR", [(tokens, value["ar_loss"]) for tokens, value in measured], {"color": "black", **_DOTS})]
        for level in dict.fromkeys(level for _, value in measured for level in value["diffusion_loss"]):
            points = [
                (tokens, value["diffusion_loss"][level])
                for tokens, value in measured
                if level in value["diffusion_loss"]
            ]
            curves.append(Curve(f"diffusion, t = {level}", points, _DOTS))
        return [Panel("nats per token", curves, title="Held-out loss")]

    def summary(self, records: Sequence[Record]) -> Record:
        """See `Metric.summary`: every validation of the stage, and its last one."""
        found = [record[self.name] | {"step": record["step"]} for record in records]
        return {"validation": found[-1] if found else None, "validations": found}

    def status_text(self, status: Record) -> tuple[str, str]:
        """See `Metric.status_text`."""
        levels: dict[str, Any] = status["diffusion_loss"]
        losses = "".join(f", t={level} {loss:.4f}" for level, loss in levels.items())
        return self.name, f"AR {status['ar_loss']:.4f}{losses}"
