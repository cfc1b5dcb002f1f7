#!/usr/bin/env bash
# Trains a tiny vision-language model on questions about drawn pictures, and asks held-out ones in every decode mode, about
# their pictures and about blank ones.
#
#   launch/vision.sh [KEY=VALUE ...]           settings as for nld-train, e.g. stages.vision.alpha=0
#
# Each command is printed before it runs. Run again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

directory=runs/vision
set -- "run.dir=$directory" "$@"
find_directory "$@"

tasks=data/pictures
run nld-data tasks "$tasks" --pictures --conversations 40000
# The first set makes the tokenizer: bytes, and the three tokens of pictures.
run nld-data prepare "$tasks/train.jsonl" --chat --pictures --out "$tasks" --tokenizer bytes \
    --picture-processor '{"patch_size": 7, "spatial_merge_size": 2, "size": {"longest_edge": 56}}'
run nld-data prepare "$tasks/held-out.jsonl" --chat --pictures --out "$tasks" --tokenizer "$tasks/tokenizer"
run torchrun --standalone --nproc-per-node "$PROCESSES" -m nld_train.train experiment=vlm_quickstart \
    run.name=vision execution.device=cpu "$@"

for name in held-out held-out-blank; do
    echo "Exact answers in every decode mode, $name:"
    run nld-exact "$directory" --prompts "$tasks/$name.jsonl" --max-new-tokens 24 --batch-size 64 \
        --output "$directory/$name.json"
done
