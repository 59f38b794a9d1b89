"""Files, folders, lines and bars, memory: what knows nothing of networks."""
