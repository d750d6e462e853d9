"""Records to numbers: validity, uniqueness, novelty, distributions, match rates."""
