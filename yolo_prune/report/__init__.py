"""Records, page and pictures of a run."""
