"""Benchmarks that join sampling, checks and scores: composition in, published figures out."""
