#!/usr/bin/env bash
# Prepares the standard library's source as a corpus of bytes, trains stage 1 and stage 2 on the CPU and shows the result.
#
#   launch/quickstart.sh [KEY=VALUE ...]       settings as for nld-train, e.g. stages.joint.alpha=0.5
#
# Run again, it goes on where it stopped. `make quickstart` makes the environment first.
set -euo pipefail
cd "$(dirname "$0")/.."

# Processes times threads is the number of cores to use. Any number of processes gives the same samples and noise.
PROCESSES=${PROCESSES:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

nld-data prepare stdlib --out data/stdlib
torchrun --standalone --nproc-per-node "$PROCESSES" -m nld_train.train \
    experiment=quickstart execution.device=cpu "$@"

directory=runs/quickstart
for setting in "$@"; do
    case $setting in run.dir=*) directory=${setting#run.dir=} ;; esac
done
python launch/show_summary.py "$directory"
