"""python -m mrl_jax.report"""

import sys

from mrl_jax.report import main

sys.exit(main())
