#!/usr/bin/env bash
# One or several nodes without a scheduler. On each the same line, but for its number:
#   NODES=2 NODE=0 HEAD=10.0.0.1 configs/cluster/torchrun.sh fit --config configs/grpo.yaml --config configs/trainer/eight_gpus.yaml
# NODES: how many; NODE: this one's number, from 0; HEAD: address of node 0, where all meet at PORT; DEVICES: GPUs of each
# (processes, without GPUs). When a process or a node dies, the others begin again at the newest checkpoint, in a folder
# that all nodes see; a node that died joins them by its line. RESTARTS: how often from one and the same checkpoint;
# WAIT: seconds in which the others must come.
set -euo pipefail
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}  # else a dead node leaves pages of stack traces
exec python -m lit_vlaa.hosts --nodes "${NODES:-1}" --node "${NODE:-}" --devices "${DEVICES:-8}" \
  --head "${HEAD:-}" --port "${PORT:-29400}" --restarts "${RESTARTS:-3}" --wait "${WAIT:-1800}" -- "$@"
