#!/usr/bin/env bash
# Every run of experiments/mlm, one after another; what is done already is not done again.
#
#     bash experiments/mlm/run.sh
set -euo pipefail

pretrain() { # name and the words that differ
  local name=$1
  shift
  python -m mrl_jax.train +experiment=mlm name=mlm run="$name" seeds=3 resume=auto "$@"
}
pretrain nested
pretrain full_width 'nesting_dims=[128]' 'evaluation.dims=[8,16,32,64]'
pretrain none trainer.steps=1 trainer.evaluations=1 optimizer.learning_rate=1e-12

for start in nested full_width none; do
  for seed in 0 1 2; do
    folder=results/mlm/exported/$start-$seed
    [ -d "$folder" ] || python -m mrl_jax.export "results/mlm/$start" --to sentence-transformers "$folder" --seed "$seed"
    python -m mrl_jax.train data=wordnet data.limit=4000 encoder=transformer encoder.weights="$folder" \
      encoder.dropout=0.1 encoder.attention_dropout=0 width=128 'nesting_dims=[8,16,32,64,128]' 'arms=[mrl]' \
      name=mlm_tuned run="$start-$seed" resume=auto recipe=none trainer.epochs=5 trainer.batch_size=64 \
      trainer.evaluations=5 optimizer.learning_rate=1e-3 optimizer.warmup=0.1 evaluation.neighbours=false \
      evaluation.refit=null evaluation.interpolated=false
  done
done
python experiments/mlm/analyse.py results/mlm_tuned
