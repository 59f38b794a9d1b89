"""A plan applied to networks and an optimizer, and weights solved after it."""
