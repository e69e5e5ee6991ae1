#!/usr/bin/env bash
# The figure of the documentation: trains a small study of Reuters R8 (10 models, some minutes on two CPU cores), writes
# its report and takes a picture of the page with headless Chromium.
#
#     docs/figures.sh [folder for the run; default results/docs]
#
# A study that is there already is not trained again: only the report and the picture are made anew.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
results=${1:-results/docs}
browser=$(command -v chromium || command -v google-chrome)

"$python" -m mrl_jax.train +experiment=reuters_r8 name=reuters_r8 'arms=[mrl,ff,truncated,pca]' seeds=2 \
  'nesting_dims=[8,32,128,256]' evaluation.interpolated=false results_dir="$results" run=study resume=auto
run=$results/reuters_r8/study
"$python" -m mrl_jax.report "$run"

mkdir -p docs/img
picture=docs/img/report.png
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=20000 \
  --window-size=1280,1500 --screenshot="$picture" "file://$(realpath "$run/report/report.html")" 2> /dev/null
"$python" - "$picture" << 'PYTHON'
import sys
from PIL import Image

with Image.open(sys.argv[1]) as image:  # a palette: a third of the bytes
    image.convert("RGB").quantize(256).save(sys.argv[1], optimize=True)
PYTHON
ls -l "$picture"
