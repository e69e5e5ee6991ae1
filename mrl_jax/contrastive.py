"""The pair losses under the name that they had before `mrl_jax.losses` held them all."""

from mrl_jax.losses.contrastive import *  # noqa: F403
