#!/usr/bin/env bash
# Prepares the standard library's source as a corpus of bytes, trains stage 1 and stage 2 on the CPU, shows the result,
# exports the model for transformers, and continues held-out text in every decode mode. Then fine-tunes it on questions
# with one right answer (instruct.sh), and asks held-out ones.
#
#   launch/quickstart.sh [KEY=VALUE ...]       settings as for nld-train, e.g. stages.joint.alpha=0.5
#
# Each command is printed before it runs. Run again, it continues where it stopped. `make quickstart` makes the environment
# first.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

run nld-data prepare stdlib --out data/stdlib
run torchrun --standalone --nproc-per-node "$PROCESSES" -m nld_train.train \
    experiment=quickstart execution.device=cpu "$@"

directory=runs/quickstart
find_directory "$@"
run python launch/show_summary.py "$directory"

prompts=$directory/prompts.jsonl
run nld-data prompts data/stdlib/stdlib-validation --out "$prompts"

echo "The model as transformers read it, $directory/export:"
run rm -rf -- "$directory/export"
run nld-convert export "$directory" "$directory/export" --format nld
run python launch/read_export.py "$directory/export" "$prompts"

echo "Every decode mode, over the prompts of $prompts:"
# Of the length that the joint stage was trained with: the longest drafts that the model makes well.
run nld-decode "$directory" --compare --prompts "$prompts" --block-length 16

# Another base than the default one has an instruct run of its own.
instruct=runs/instruct
[[ $directory == runs/quickstart ]] || instruct=$directory-instruct
BASE=$directory launch/instruct.sh "run.dir=$instruct"
