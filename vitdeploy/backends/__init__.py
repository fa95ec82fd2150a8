"""Inference engines: each in its own file or folder, all of them rows of one table."""
