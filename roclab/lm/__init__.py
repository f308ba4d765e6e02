"""RocLM: a decoder-only transformer from scratch, its checkpoints, tokenizers, generation and chat."""
