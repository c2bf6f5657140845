"""The framework cvpods as a host: its own config class, data, runner, hooks and evaluator around IFR's mask head.

Nothing of cvpods is imported before a module that needs it is: see `framework`.
"""
