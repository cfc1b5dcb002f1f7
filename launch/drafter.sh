#!/usr/bin/env bash
# Trains the drafter adapter beside the weights of the quickstart, and decodes held-out prompts with and without it.
#
#   launch/drafter.sh [KEY=VALUE ...]          settings as for nld-train, e.g. stages.drafter.adapter.rank=32
#
# Each command is printed before it runs. Run again, it continues where it stopped. BASE is the run whose newest checkpoint
# it starts from.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

BASE=${BASE:-runs/quickstart}

if [[ ! -e $BASE/checkpoints/latest ]]; then
    echo "error: there is no checkpoint in $BASE: make quickstart first, or name another run in BASE" >&2
    exit 2
fi

directory=runs/drafter
set -- "run.dir=$directory" "$@"
find_directory "$@"

run torchrun --standalone --nproc-per-node "$PROCESSES" -m nld_train.train experiment=quickstart stages=drafter_quickstart \
    run.name=drafter execution.device=cpu init.checkpoint="$BASE" "$@"
run nld-data prompts data/stdlib/stdlib-validation --out "$directory/prompts.jsonl" --count 16 --tokens 128
run python launch/show_drafter.py "$directory"
