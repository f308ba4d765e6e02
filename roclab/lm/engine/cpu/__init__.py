"""Quantized CPU kernels for RocLM. `build` compiles them, `pack` lays the weights out, `fast` is the model."""
