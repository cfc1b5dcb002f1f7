#!/usr/bin/env bash
# Submits jobs one after another, each of which starts when the one before it has finished well: for instance a job per
# stage, each with the layout that suits it.
#
#   launch/chain.sh [SBATCH OPTIONS] -- SETTINGS OF ALL -- SETTINGS OF THE FIRST -- SETTINGS OF THE SECOND ...
#
#   launch/chain.sh --nodes 32 -- experiment=paper_8b -- 'run.stages=[ar]' -- batch.micro_size=1
#
# All jobs share one run.dir: the second continues from the first one's last checkpoint. (One job may also run through all
# stages: launch/slurm.sbatch alone.)
set -euo pipefail
cd "$(dirname "$0")/.."

parts=0
options=() common=() settings=() previous=""

submit() {
    local after=()
    if [[ -n $previous ]]; then
        after=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
    fi
    local command=(sbatch --parsable "${options[@]}" "${after[@]}" launch/slurm.sbatch "${common[@]}" "${settings[@]}")
    printf '+'
    printf ' %q' "${command[@]}"
    printf '\n'
    previous=$("${command[@]}")
    previous=${previous%%;*} # the cluster's name may follow
    echo "job $previous"
    settings=()
}

for word in "$@"; do
    if [[ $word == -- ]]; then
        ((parts < 2)) || submit
        parts=$((parts + 1))
    elif ((parts == 0)); then
        options+=("$word")
    elif ((parts == 1)); then
        common+=("$word")
    else
        settings+=("$word")
    fi
done
if ((parts < 2)); then
    echo "error: two -- are needed: launch/chain.sh [SBATCH OPTIONS] -- SETTINGS OF ALL -- SETTINGS OF THE FIRST ..." >&2
    exit 2
fi
submit
