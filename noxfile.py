"""``nox``: the fast tests on the oldest supported and on the newest ultralytics and torch-pruning."""

from __future__ import annotations

import nox

BOUNDS = [
    bound
    for bound in nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    if bound.startswith(("ultralytics", "torch-pruning"))
]


@nox.session
@nox.parametrize("release", ["oldest", "newest"])
def drift(session: nox.Session, release: str) -> None:
    """Run the tests that are marked ``drift``."""
    session.install(".[test]")
    session.install("--upgrade", *(bound.replace(">=", "==") if release == "oldest" else bound for bound in BOUNDS))
    session.run("pytest", "-n", "2", "-m", "drift", env={"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"})
