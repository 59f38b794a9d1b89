"""Choice of the channels to remove: allocation, measured sensitivity, the planner."""
