"""Measuring: runners in, numbers out. No thresholds and no opinions; NumPy and the standard library only."""
