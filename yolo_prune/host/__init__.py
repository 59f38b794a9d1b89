"""Everything that knows Ultralytics' trainer, checkpoints and private names."""
