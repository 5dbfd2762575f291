"""What answers: expert specifications, the rules of the registry, and the engines behind them."""
