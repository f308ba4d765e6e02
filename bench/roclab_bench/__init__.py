"""Measurements of RocLM beside its peers: what `roclab lm bench` runs."""
