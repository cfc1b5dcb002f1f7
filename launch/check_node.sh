#!/usr/bin/env bash
# Whether this node is fit for a training process per GPU: launch/slurm.sbatch runs it on every node before the run.
#
# Prints one line, and an `error:` line for each fault; the exit code is 1 where there is one. Read from the environment:
# MASTER_ADDRESS, PROCESSES and NETWORK_INTERFACE as in launch/slurm.sbatch, SLURM_GPUS_ON_NODE as Slurm sets it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

node=$(uname -n)
faults=0

fault() {
    echo "error: $node: $1" >&2
    faults=$((faults + 1))
}

missing=$(python - <<'END' 2>&1
from importlib.util import find_spec

print(*(name for name in ("torch", "megatron", "transformers", "hydra") if find_spec(name) is None))
END
) || missing="python: $missing"
if [[ -n $missing ]]; then
    fault "python does not find: ${missing//$'\n'/ }; activate the environment before sbatch, on a file system that all nodes share"
fi

if [[ -n ${MASTER_ADDRESS:-} ]] && ! getent hosts "$MASTER_ADDRESS" >/dev/null; then
    fault "does not know the first node's name, $MASTER_ADDRESS"
fi
if [[ -n ${NETWORK_INTERFACE:-} && ! -e /sys/class/net/$NETWORK_INTERFACE ]]; then
    fault "NETWORK_INTERFACE=$NETWORK_INTERFACE: not one of $(cd /sys/class/net && echo *)"
fi

expected=${SLURM_GPUS_ON_NODE:-0}
found=0
# As many processes as are named need no GPU.
if [[ ${PROCESSES:-gpu} == gpu && $expected -gt 0 ]]; then
    if ! listed=$(nvidia-smi --query-gpu=index,memory.used --format=csv,noheader,nounits 2>&1); then
        fault "nvidia-smi: ${listed//$'\n'/ }"
    else
        found=$(grep -c . <<<"$listed")
        ((found >= expected)) || fault "$found of $expected GPUs answer"
        # Left over from another job, or taken by one; an idle GPU uses some hundred MiB.
        while IFS=', ' read -r gpu used; do
            ((used <= 2048)) || fault "GPU $gpu: $used MiB are in use already"
        done <<<"$listed"
    fi
fi

((faults == 0)) || exit 1
echo "$node: fit, $(nproc) CPUs, $found GPUs"
