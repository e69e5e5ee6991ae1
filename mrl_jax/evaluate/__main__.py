"""`python -m mrl_jax.evaluate`: see `mrl_jax.zero_shot`."""

import sys

from mrl_jax.zero_shot import main

if __name__ == "__main__":
    sys.exit(main())
