"""The commands of the README and the docs, and how each is shortened so that a test can run it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TRAINS = re.compile(r"\bnld-train\b|nld_train\.train|launch/\w+\.sh")

# Two steps per stage instead of hundreds, on short samples.
SHORT_SAMPLES = (
    "batch.global_size=8 batch.micro_size=1 batch.sequence_length=32 validation.samples=8 logging.wandb.mode=disabled"
)
SHORT_RUN = f"stages.ar.tokens=512 stages.joint.tokens=512 {SHORT_SAMPLES}"
SHORT_DRAFTER = "stages.drafter.tokens=512"
# Conversations are whole in a sample.
SHORT_CHAT = (
    "stages.sft.tokens=4096 batch.global_size=8 batch.micro_size=4 batch.sequence_length=256 validation.samples=8 "
    "evaluation.max_new_tokens=8 logging.wandb.mode=disabled"
)

# What is replaced in a command before it runs: pattern, replacement. Each has a reason.
SHORTENINGS = (
    # Short runs have four steps: stop in the second stage.
    (r"run\.max_steps=50\b", "run.max_steps=3"),
    # One node stands for many: others would never come to the meeting point.
    (r"NODES=\d+ MASTER_ADDRESS=node0 (PROCESSES=\d+ )?launch", "NODES=1 PROCESSES=8 launch"),
    # Any free port, since other tests may run beside this one.
    (r"torchrun --nproc", "torchrun --standalone --nproc"),
    # Its figures go beside the kept ones, not over them.
    (r"python -m benchmarks\.(\w+)", r"python -m benchmarks.\1 --results results"),
)


@dataclass(frozen=True)
class Block:
    """One block of commands, which run one after another in the same folder."""

    page: str
    number: int
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        """Names the block in test ids."""
        return f"{Path(self.page).stem}-{self.number}-{'-'.join(re.findall(r'[a-z]+', self.commands[0])[:3])}"

    @property
    def trains(self) -> bool:
        """Whether a command of it takes more than a moment."""
        return any(_TRAINS.search(command) and "run.dry" not in shorten(command) for command in self.commands) or any(
            "torchrun" in command or "benchmarks" in command or "run.dry=build" in command for command in self.commands
        )


def blocks() -> Iterator[Block]:
    """All of them, page after page."""
    for page in PAGES:
        for number, body in enumerate(_BLOCK.findall(page.read_text())):
            lines = body.replace("\\\n", " ").splitlines()
            commands = tuple(line for line in lines if line and not line.startswith("#"))
            yield Block(str(page.relative_to(ROOT)), number, commands)


def shorten(command: str) -> str:
    """The command as the test runs it: a short run, or the plan of a run that needs a cluster."""
    for pattern, replacement in SHORTENINGS:
        command = re.sub(pattern, replacement, command)
    if not _TRAINS.search(command) or "run.dry" in command or "--help" in command:
        return command
    if any(f"experiment={name}" in command for name in ("paper", "ablation", "sft")):
        return f"{command} run.dry=true"
    if "stages=sft" in command:
        return f"{command} {SHORT_CHAT}"
    if "stages=drafter" in command:  # which defines no other stage
        return f"{command} {SHORT_DRAFTER} {SHORT_SAMPLES}"
    return f"{command} {SHORT_DRAFTER if 'drafter' in command else ''} {SHORT_RUN}"


def copy_checkout(destination: Path) -> Path:
    """What a clone of the working tree would hold: tracked files, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name)
    return destination
