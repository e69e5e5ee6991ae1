"""One module per data source and task, each with `read(config)`; `mrl_jax.data.SOURCES` names them."""
