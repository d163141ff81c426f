#!/bin/sh
# One machine: torchrun starts the processes, pogdiff joins them. `pogdiff train --gpus 4` does the same by itself.
#
#   torchrun.sh PROCESSES [OPTIONS OF pogdiff train]
#   torchrun.sh 4 -C myproj --name wide
#
# Several machines: put --nnodes and --rdzv-endpoint in the place of --standalone, and type it on each.
set -eu
processes=$1
shift
exec torchrun --standalone --nproc-per-node "$processes" -m pogdiff_cli train "$@"
