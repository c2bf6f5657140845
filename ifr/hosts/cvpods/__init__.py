"""The framework cvpods as a host: its config class, data, runner, hooks and evaluator with IFR's mask head.

Only modules that need cvpods import it, through `framework`.
"""
