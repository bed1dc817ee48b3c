"""Checks of the attacks: one module each, with registration, thresholds, audit and codes.

A check is a context manager `(defence, x, y, threat, classes, stochastic, *, knobs)`. It yields a
`CheckTarget`, or None where there is nothing to attack. With a knob `attack` it is given one
example at a time, and the attack that the knob names is run against the target. Without that knob
it is given all of its examples at once, and attacks nothing. Its audit reads records. No module
that registers a check imports torch; the modules that measure do.
"""

from importlib import import_module

# Notes of the checks stand in a row's reasons in this order.
MODULES = ("known_randomness", "gradient_quality", "failure_indicators", "planted_examples")
for module in MODULES:
    import_module(f"bench.checks.{module}")
