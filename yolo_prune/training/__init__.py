"""The live run and its parts."""
