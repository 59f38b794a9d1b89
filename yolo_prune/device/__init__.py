"""A stopwatch that other machines can carry: Python 3.9, numpy and a runtime are enough."""
