"""Exact rewrites of a recognised ViT: the same function with fewer operations, or with numbers that quantize better."""
