"""Tasks of lm-evaluation-harness that score the held-out conversations: exact match, by kind and over all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nld_train.files import write_atomically

# The folder of the tasks in that of the conversations; the group of all kinds, and the beginning of each task's name.
FOLDER, GROUP = "harness", "nld_tasks"

_TASK = """\
task: {group}_{kind}
class: !function conversations.Conversations
custom_dataset: !function conversations.load
dataset_kwargs:
  kind: {kind}
test_split: test
output_type: generate_until
doc_to_text: "{{{{messages[-2].content}}}}"
doc_to_target: "{{{{messages[-1].content}}}}"
generation_kwargs:
  until: []
  max_gen_toks: 64
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
_GROUP = """\
group: {group}
task: [{tasks}]
aggregate_metric_list:
  - metric: exact_match
    aggregation: mean
    weight_by_size: true
"""


def write_harness_tasks(folder: Path, kinds: Sequence[str]) -> None:
    """Writes a task for each kind, their group, and the code that they share."""
    tasks = folder / FOLDER
    tasks.mkdir(exist_ok=True)
    for kind in kinds:
        write_atomically(tasks / f"{kind}.yaml", _TASK.format(group=GROUP, kind=kind))
    names = ", ".join(f"{GROUP}_{kind}" for kind in kinds)
    write_atomically(tasks / "all.yaml", _GROUP.format(group=GROUP, tasks=names))
    # Beside the YAML, as lm_eval requires; so the folder can be used without this package as well.
    code = Path(__file__).with_name("conversations.py").read_text(encoding="utf-8")
    write_atomically(tasks / "conversations.py", code)
