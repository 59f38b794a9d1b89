"""``nox``: the two tiers of tests, and what hangs on the releases of ultralytics and torch-pruning on both ends."""

from __future__ import annotations

import nox

BOUNDS = [
    bound
    for bound in nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    if bound.startswith(("ultralytics", "torch-pruning"))
]


ENVIRONMENT = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


@nox.session
@nox.parametrize("tier", ["not slow", "slow"])
def tests(session: nox.Session, tier: str) -> None:
    """Run the fast or the slow tier."""
    session.install(".[test]")
    session.run("pytest", "-n", "2", "-m", tier, env=ENVIRONMENT)


@nox.session
@nox.parametrize("release", ["oldest", "newest"])
def drift(session: nox.Session, release: str) -> None:
    """Run the tests of both tiers that are marked ``drift``."""
    session.install(".[test]")
    session.install("--upgrade", *(bound.replace(">=", "==") if release == "oldest" else bound for bound in BOUNDS))
    session.run("pytest", "-n", "2", "-m", "drift", env=ENVIRONMENT)
