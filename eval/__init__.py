"""How good and how fast: datasets, metrics, baselines, benchmarks."""
