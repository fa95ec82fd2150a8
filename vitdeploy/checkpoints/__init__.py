"""Weights from wherever they come: read without running any of it, recognised, converted by a table, all accounted for."""
