"""Options of a run, and the grammar of targets."""

from yolo_prune.config.settings import PruneConfig

__all__ = ["PruneConfig"]
