"""From corpora as people have them to canonical CIFs and token shards."""
