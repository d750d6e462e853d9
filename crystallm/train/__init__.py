"""Training of anything that has a `loss(batch)`."""
