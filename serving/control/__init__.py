"""API keys, rules, experiments and the SQL tables behind them."""
