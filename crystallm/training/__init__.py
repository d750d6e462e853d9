"""Training runs: what bin/train.py does with a config, one file a model."""
