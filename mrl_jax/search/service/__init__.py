"""The service of `python -m mrl_jax.search serve`: an index, opened once, that answers over HTTP.

server    the process: its socket, its signals, how it ends
options   of the command line, and the limits of a request
app       one request: who may ask, what it may cost, and how an answer or a mistake is sent
schema    what may be asked: one table that requests are checked by and /openapi.json is made of
worker    a thread that owns model and index, and answers what has come in meanwhile as one batch
answers   what is done with a batch
map       a sample of the corpus in two coordinates, at every dim
page      the pages at / and /docs
"""
