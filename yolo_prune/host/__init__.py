"""Ultralytics' trainer, checkpoints and private names."""
