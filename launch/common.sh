#!/usr/bin/env bash
# Functions of quickstart.sh and drafter.sh, which source this file.

# Processes times threads is the number of cores to use. Any number of processes gives the same samples, noise and drafts.
PROCESSES=${PROCESSES:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Prints a command, and runs it.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

# Sets `directory` to the last run.dir among settings KEY=VALUE; does not change it where there is none.
find_directory() {
    local setting
    for setting in "$@"; do
        # shellcheck disable=SC2034  # read by the scripts that source this
        case $setting in run.dir=*) directory=${setting#run.dir=} ;; esac
    done
}
