#!/usr/bin/env bash
# A sweep on SLURM: each value is a job of four tasks that train one run together. Started again, it does what is missing.
#     pip install 'mrl_jax[sweeps]'; experiments/launch/sweep.sh optimizer.learning_rate=3e-3,1e-2
set -euo pipefail
python -m mrl_jax.train --multirun +experiment=reuters_r52 arms=all seeds=5 "$@" distributed=slurm \
  hydra/launcher=submitit_slurm hydra.launcher.partition="${PARTITION:-gpu}" hydra.launcher.nodes=1 \
  hydra.launcher.tasks_per_node=4 hydra.launcher.gpus_per_node=4 hydra.launcher.cpus_per_task=8 \
  hydra.launcher.timeout_min=720 hydra.launcher.signal_delay_s=60
