"""The live run, and what it is made of."""
