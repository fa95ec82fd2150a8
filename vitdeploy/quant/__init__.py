"""Policy of quantization: what is observed, which ranges are chosen, what becomes INT8."""
