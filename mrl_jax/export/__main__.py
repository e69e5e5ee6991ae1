"""python -m mrl_jax.export"""

import sys

from mrl_jax.export import main

sys.exit(main())
