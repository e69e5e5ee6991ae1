"""python -m mrl_jax.search"""

import sys

from mrl_jax.search import main

sys.exit(main())
