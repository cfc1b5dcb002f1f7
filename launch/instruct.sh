#!/usr/bin/env bash
# Fine-tunes a run of the quickstart's model on questions with one right answer, and asks held-out ones in every decode mode.
#
#   launch/instruct.sh [KEY=VALUE ...]         settings as for nld-train, e.g. stages.instruct.alpha=0
#
# Each command is printed before it runs. Run again, it continues where it stopped. BASE is the run, checkpoint or export
# that it starts from.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

BASE=${BASE:-runs/quickstart}

if [[ ! -e $BASE ]]; then
    echo "error: there is no $BASE: make quickstart first, or name another run in BASE" >&2
    exit 2
fi

directory=runs/instruct
set -- "run.dir=$directory" "$@"
find_directory "$@"

tasks=data/tasks
run nld-data tasks "$tasks"
run nld-data prepare "$tasks/text.jsonl" --out "$tasks" --tokenizer data/stdlib/tokenizer
for name in train held-out; do
    run nld-data prepare "$tasks/$name.jsonl" --chat --chat-template default --out "$tasks" --tokenizer data/stdlib/tokenizer
done
run torchrun --standalone --nproc-per-node "$PROCESSES" -m nld_train.train experiment=instruct_quickstart \
    run.name=instruct execution.device=cpu init.checkpoint="$BASE" "$@"

# The scores come first: the card of the export has them.
echo "Held-out questions in every decode mode: exact answers, and tokens per forward:"
run nld-exact "$directory" --prompts "$tasks/held-out.jsonl" --max-new-tokens 48 --batch-size 64 \
    --output "$directory/scores.json"
run rm -rf -- "$directory/export"
run nld-convert export "$directory" "$directory/export" --format nld
