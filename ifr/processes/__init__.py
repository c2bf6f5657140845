"""Start and stop worker processes and collect their results and errors."""
