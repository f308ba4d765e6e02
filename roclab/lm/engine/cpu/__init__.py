"""Quantized CPU kernels for RocLM. `build` compiles them, `pack` lays the weights out, `runner` computes with them."""
