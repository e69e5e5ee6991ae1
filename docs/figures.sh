#!/usr/bin/env bash
# The figures of the documentation: trains a small study of Reuters R8 (10 models, some minutes on two CPU cores), writes its
# report and takes pictures of the page with headless Chromium.
#
#     docs/figures.sh [folder for the run; default results/docs]
#
# A study that is there already is not trained again: only the report and the pictures are made anew.
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
picture() { # file, width, height: the top of the page
  "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=20000 \
    --window-size="$2,$3" --screenshot="docs/img/$1" "file://$(realpath "$run/report/report.html")" 2> /dev/null
  "$python" - "docs/img/$1" << 'PYTHON'
import sys
from PIL import Image

with Image.open(sys.argv[1]) as image:  # few colours: a third of the bytes
    image.convert("RGB").quantize(64).save(sys.argv[1], optimize=True)
PYTHON
}
picture report.png 1280 1500
picture report-phone.png 420 900
ls -l docs/img
