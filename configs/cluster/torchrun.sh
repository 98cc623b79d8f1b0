#!/usr/bin/env bash
# Several nodes without a scheduler. On each the same line, but for its number:
#   NODES=2 NODE=0 HEAD=10.0.0.1 configs/cluster/torchrun.sh fit --config configs/grpo.yaml --config configs/trainer/eight_gpus.yaml
# NODES: how many; NODE: this one's number, from 0; HEAD: address of node 0, where all meet at PORT; DEVICES: GPUs of each
# (processes, without GPUs). When one node dies the others end; once all have, the same lines go on from the newest
# checkpoint, which must lie in a folder that all nodes see.
set -euo pipefail
NODES=${NODES:-1}
DEVICES=${DEVICES:-8}
exec python -m torch.distributed.run --nnodes "$NODES" --node-rank "${NODE:-0}" --nproc-per-node "$DEVICES" \
  --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29400}" \
  -m lit_vlaa "$@" --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" --ckpt_path last
