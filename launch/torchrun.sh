#!/usr/bin/env bash
# Starts the training processes of one node, one per GPU.
#
#   launch/torchrun.sh experiment=paper_8b [KEY=VALUE ...]
#
# One node needs nothing more. On several, run it on each of them with
#   NODES             their number
#   MASTER_ADDRESS    host name of one of them, the same everywhere
#   MASTER_PORT       a free port there (29500)
#   RUN_ID            a name that other runs on that port do not have (nld-train)
#   NODE_RANK         0 on the node that MASTER_ADDRESS names; may be left out where host names resolve as usual
#   NODE_ADDRESS      under which the other nodes reach this one; may be left out likewise
# PROCESSES is the number of processes per node (all GPUs, or 1).
# NUMA_BINDING binds each process to the CPUs near its GPU: node (the default where numactl is installed), socket,
# exclusive, core-complex, or none.
# LOGS is a folder: each process's output then goes to a file of its own there, and the first one's to the terminal too.
#
# SIGUSR1, SIGTERM and SIGINT end the run after the current step, saved. The exit code is that of the process which
# failed first: 75 where the run was saved and the same command continues it, 128 + n where it was killed by signal n.
set -euo pipefail
cd "$(dirname "$0")/.."

NODES=${NODES:-1}
PROCESSES=${PROCESSES:-gpu}
if [[ $PROCESSES == gpu ]] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    PROCESSES=1
fi
if ((NODES > 1)); then
    rendezvous=(--rdzv-backend c10d --rdzv-endpoint "${MASTER_ADDRESS:?host name of one node}:${MASTER_PORT:-29500}"
        --rdzv-id "${RUN_ID:-nld-train}")
    if [[ -n ${NODE_RANK:-} ]]; then
        rendezvous+=(--rdzv-conf "is_host=$((NODE_RANK == 0))")
    fi
else
    rendezvous=(--standalone)
fi
if [[ -n ${NODE_ADDRESS:-} ]]; then
    rendezvous+=(--local-addr "$NODE_ADDRESS")
fi
binding=()
if [[ $PROCESSES == gpu && ${NUMA_BINDING:-} != none ]]; then
    # torch needs numactl for it, and fails without it.
    if [[ -n ${NUMA_BINDING:-} ]] || command -v numactl >/dev/null; then
        binding=(--numa-binding "${NUMA_BINDING:-node}")
    fi
fi
logs=()
if [[ -n ${LOGS:-} ]]; then
    mkdir -p "$LOGS"
    logs=(--log-dir "$LOGS" --redirects 3 --tee 0:3)
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Activations of changing size leave gaps in fixed segments of memory.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

command=(python launch/agent.py --nnodes "$NODES" --nproc-per-node "$PROCESSES" "${rendezvous[@]}" "${binding[@]}"
    "${logs[@]}" -m nld_train.train "$@")
printf '+ on %s:' "$(uname -n)"
printf ' %q' "${command[@]}"
printf '\n'
exec "${command[@]}"
