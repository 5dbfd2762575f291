"""Residency and placement on simulated devices: traces, runs, an offline bound, comparisons."""
