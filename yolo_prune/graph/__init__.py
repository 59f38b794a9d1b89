"""From a network to its channel groups, and what kinds of layers have channels."""
