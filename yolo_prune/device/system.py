"""What a device tells of itself: its name, its clock, its temperature, and whether it is held back."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from yolo_prune.device.command import is_command
from yolo_prune.device.runners import version_of

_SYS = Path("/sys")
_REASONS = {0b0001: "too little voltage", 0b1110: "it is too hot"}
"""Bits of what a Raspberry Pi's firmware tells of this moment -> what they mean."""


def conditions(runtime: str, threads: int) -> dict[str, Any]:
    """Return what a measurement depends on: runtime, version, device and threads.

    Nobody knows what a command runs on, or with how many threads.
    """
    if is_command(runtime):
        return {"runtime": runtime, "version": "unknown", "device": "what the command runs on", "threads": 0}
    return {"runtime": runtime, "version": version_of(runtime), "device": device_name(), "threads": threads}


def surroundings() -> dict[str, Any]:
    """Return what else is worth knowing: system, clock and temperature, as far as they can be read."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "governor": _first(_SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor")),
        "megahertz": megahertz(),
        "celsius": celsius(),
    }


def all_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name() -> str:
    """Return the name of the board, or of its processor."""
    if board := _first([Path("/proc/device-tree/model")]):
        return board.strip("\0")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def megahertz() -> float | None:
    """Return the clock of the fastest core right now, or None."""
    return _most(_SYS.glob("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"), 1e3)


def celsius() -> float | None:
    """Return the highest temperature that the system tells, or None."""
    return _most(_SYS.glob("class/thermal/thermal_zone*/temp"), 1e3)


def held_back() -> str | None:
    """Return why the firmware of a Raspberry Pi holds the clock back right now, or None; others do not tell."""
    text = _first([_SYS / "devices/platform/soc/soc:firmware/get_throttled"])
    try:
        bits = int(text or "0", 16)
    except ValueError:
        return None
    return ", ".join(reason for mask, reason in _REASONS.items() if bits & mask) or None


def _first(paths: Any) -> str | None:
    for path in paths:
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return None


def _most(paths: Any, unit: float) -> float | None:
    found = []
    for path in paths:
        text = _first([path])
        if text and text.lstrip("-").isdigit():
            found.append(int(text) / unit)
    return max(found, default=None)
