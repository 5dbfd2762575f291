"""How an expert is chosen: encoders, category router, mapping, ranking, training, artefacts."""
