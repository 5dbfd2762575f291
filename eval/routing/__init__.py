"""How good routing is: data, baselines, cross-validation, figures and the report."""
