"""Training and testing by cvpods' own runner, hooks, data and evaluator."""
