"""``python -m yolo_prune``: the same as the ``yolo-prune`` command."""

from __future__ import annotations

import sys

from yolo_prune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
