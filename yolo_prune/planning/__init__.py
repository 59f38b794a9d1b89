"""Which channels go: allocation, measured sensitivity, the planner."""
