#!/usr/bin/env bash
# Starts one node's share of a training run, one process per GPU.
#
#   launch/torchrun.sh experiment=paper_8b [KEY=VALUE ...]
#
# One node needs nothing more. On several, run it on each of them with
#   NODES             their number
#   MASTER_ADDRESS    host name of one of them, the same everywhere
#   MASTER_PORT       a free port there (29500)
#   RUN_ID            a name that other runs on that port do not have (nld-train)
# PROCESSES is the number of processes per node (all GPUs, or 1).
set -euo pipefail
cd "$(dirname "$0")/.."

NODES=${NODES:-1}
PROCESSES=${PROCESSES:-gpu}
if [[ $PROCESSES == gpu ]] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    PROCESSES=1
fi
if ((NODES > 1)); then
    meeting=(--rdzv-backend c10d --rdzv-endpoint "${MASTER_ADDRESS:?host name of one node}:${MASTER_PORT:-29500}"
        --rdzv-id "${RUN_ID:-nld-train}")
else
    meeting=(--standalone)
fi

# Megatron needs its communication kernels to start in the order in which they were issued, to overlap them with others.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec torchrun --nnodes "$NODES" --nproc-per-node "$PROCESSES" "${meeting[@]}" -m nld_train.train "$@"
