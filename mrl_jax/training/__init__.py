"""Training: what a step computes, which examples it sees, and the loop over a population of members."""
