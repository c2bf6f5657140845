"""Training and testing with cvpods' runner, hooks, data and evaluator."""
