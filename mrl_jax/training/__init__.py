"""Training: the step, the batches that it sees, and the loop over a population of members."""
