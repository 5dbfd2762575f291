"""The demo experts' own material: the data their adapters learn from, the recipe, the adapters."""
