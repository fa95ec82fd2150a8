"""Weights from files: one module a source. Today: safetensors with our own names (`native`)."""
