#!/usr/bin/env bash
# Several processes on this machine, a core each: experiments/launch/local.sh 2 +experiment=reuters_r52 arms=all seeds=5
set -euo pipefail
count=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
pids=()
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM
for ((process = 0; process < count; process++)); do
  taskset --cpu-list "$((process % $(nproc)))" "$python" -m mrl_jax.train "$@" distributed=explicit \
    distributed.coordinator="127.0.0.1:$port" distributed.processes="$count" distributed.process="$process" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
