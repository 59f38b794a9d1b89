"""The program of a kit: it times the networks that it carries on this device, and writes what came out.

    python kit.pyz                  # about five minutes
    python kit.pyz --quick          # about two minutes
    python kit.pyz --threads 1      # of the processor; by default all of them

It needs Python 3.9 or newer, numpy, and the runtime that the kit is for. What has been timed is written after each
turn, so that a kit which was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.device.command import is_command
from yolo_prune.device.runners import module_of, open_file, version_of
from yolo_prune.device.stopwatch import QUIET, Runner
from yolo_prune.device.system import all_threads, celsius, conditions, held_back, megahertz, surroundings
from yolo_prune.device.timers import CommandTimer, Effort, RunnerTimer, Timer
from yolo_prune.errors import PruneError, describe_error

MANIFEST = "kit.json"
"""Name in the kit of what says which networks there are."""
SAMPLES, COMPARISON = "latency", "latency-result"
"""Kinds of kits: networks of random widths, and finished files side by side."""
TURN = 6
"""Networks that run in turns with the first one; the memory of small boards holds no more."""
ROUNDS = (5, 60)
"""Times that a network runs, at least and at most."""
QUICK, THOROUGH = 60.0, 240.0
"""Seconds that networks run in all."""
SLOWER = 1.1
"""Times as long as at first that the first network takes on a device that is held back, or busy."""


def main(archive: str, arguments: Sequence[str] | None = None) -> int:
    """Run a kit.

    Args:
        archive: Path of the kit.
        arguments: Of the command line.

    Returns:
        The exit status.
    """
    with zipfile.ZipFile(archive) as kit:
        manifest = json.loads(kit.read(MANIFEST))
        args = _parser(manifest).parse_args(arguments)
        try:
            if not is_command(manifest["runtime"]):
                module_of(manifest["runtime"])
            (_time_samples if manifest["kind"] == SAMPLES else _compare)(kit, manifest, args)
        except PruneError as e:
            print(f"error: {e}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted; start it again, and it goes on where it was", file=sys.stderr)
            return 130
    return 0


def _parser(manifest: Mapping[str, Any]) -> argparse.ArgumentParser:
    out = f"{manifest['kind']}.json"
    parser = argparse.ArgumentParser(description=f"Time {manifest['model']} in {manifest['runtime']} on this device.")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"file to write (default: {out})")
    parser.add_argument("--threads", type=_count, default=all_threads(), help="of the processor (default: all)")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of five; predictions get less exact")
    parser.add_argument("--again", action="store_true", help="time anew what has been timed")
    return parser


def _count(text: str) -> int:
    """Read a whole number above 0, or raise an error that argparse tells."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def _time_samples(kit: zipfile.ZipFile, manifest: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Time the networks in turns with the first one, and write the file after each turn."""
    networks = manifest["networks"][: manifest["quick"] if args.quick else None]
    first, *others = (network["name"] for network in networks)
    result = _begun(manifest, args)
    missing = [name for name in others if name not in result["ratios"]]
    turns = [missing[i : i + TURN] for i in range(0, len(missing), TURN)]
    budget = (QUICK if args.quick else THOROUGH) / max(1, -(-len(others) // TURN))
    with _progress("timing networks", len(turns)) as step:
        for names in turns:
            seconds, share = _turn(kit, manifest, [first, *names], args.threads, budget)
            result["ratios"].update({name: s / seconds[0] for name, s in zip(names, seconds[1:])})
            result["turns"].append({"first": seconds[0], "share": share, **_state()})
            _write(args.out, result)
            step()
    result["complete"], result["warnings"] = True, _complaints(result["turns"])
    _write(args.out, result)
    milliseconds = 1e3 * float(np.median([turn["first"] for turn in result["turns"]]))
    print(f"{manifest['model']}: {milliseconds:.2f} ms on {result['where']['device']}")
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    print(f"{args.out}: take it to where you train: prune_latency={args.out.name}")


def _begun(manifest: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return what has been timed before, or nothing yet."""
    result = {**_kept(manifest), "where": conditions(manifest["runtime"], args.threads), "about": surroundings()}
    result.update(quick=args.quick, complete=False, ratios={}, turns=[], networks=manifest["networks"])
    if args.again or not args.out.exists():
        return result
    try:
        before = json.loads(args.out.read_text(encoding="utf-8"))
        is_same = all(before[name] == result[name] for name in ("id", "where"))
    except (OSError, ValueError, KeyError, TypeError):
        is_same = False
    if not is_same:
        raise PruneError(
            f"{args.out} is of another kit, device or number of threads; name another file with --out, or give --again."
        )
    return {**before, "quick": args.quick, "complete": False}


def _turn(
    kit: zipfile.ZipFile, manifest: Mapping[str, Any], names: Sequence[str], threads: int, budget: float
) -> tuple[list[float], float | None]:
    """Return the seconds of networks for one image, and the share of its processors that the slowest thread got."""
    with tempfile.TemporaryDirectory() as folder:
        files = [_extract(kit, name, Path(folder)) for name in names]
        seconds, share = _timer(manifest, threads).seconds(files, Effort(budget, *ROUNDS))
    return [float(s) for s in seconds], share


def _compare(kit: zipfile.ZipFile, manifest: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Time finished files side by side, and say how many times as fast as the first one the others are."""
    names = [network["name"] for network in manifest["networks"]]
    result = _kept(manifest)
    result.update(where=conditions(manifest["runtime"], args.threads), about=surroundings(), networks=names)
    with tempfile.TemporaryDirectory() as folder:
        files = [_extract(kit, name, Path(folder)) for name in names]
        effort = Effort((QUICK if args.quick else THOROUGH) / 3, *ROUNDS)
        timing = _timer(manifest, args.threads).compare(files, effort, _progress)
    quartiles = np.quantile(timing.seconds, (0.25, 0.5, 0.75), axis=1).T
    result["seconds"] = [[float(s) for s in of] for of in quartiles]
    result["speedups"] = [asdict(timing.speedup(i)) for i in range(len(names))]
    for i, name in enumerate(names):
        told = f", {timing.speedup(i).told()}" if i else ""
        print(f"{name}: {1e3 * result['seconds'][i][0]:.2f} ms{told}")
    _write(args.out, result)
    print(
        f"{args.out}: take it to where you train, and give it with the models in this order: "
        f"yolo-prune bench … results={args.out.name}"
    )


def _kept(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result says of the kit that it comes from."""
    return {name: of for name, of in manifest.items() if name not in {"networks", "quick"}}


def _timer(manifest: Mapping[str, Any], threads: int) -> Timer:
    """Return what times the files of a kit."""
    if is_command(runtime := manifest["runtime"]):
        return CommandTimer(runtime)
    busy = None if runtime in {"tensorrt", "coreml"} else threads  # a GPU computes
    return RunnerTimer(lambda file: _open(manifest, file, threads), busy)


def _open(manifest: Mapping[str, Any], file: Path, threads: int) -> Runner:
    """Open a file.

    Raises:
        PruneError: If the runtime cannot read it.
    """
    shape = (1, manifest["channels"], *manifest["imgsz"])
    try:
        return open_file(manifest["runtime"], file, shape, threads, half=manifest["precision"] == "16")
    except PruneError:
        raise
    except Exception as e:  # whatever a runtime raises at a file of another version
        raise PruneError(
            f"{manifest['runtime']} {version_of(manifest['runtime'])} cannot open {file.name} ({describe_error(e)}); "
            "install another version of it, or make the kit with another format or precision."
        ) from e


def _extract(kit: zipfile.ZipFile, name: str, folder: Path) -> Path:
    """Extract a network, a file or a folder, and return where it lies."""
    for member in kit.namelist():
        if member == f"networks/{name}" or member.startswith(f"networks/{name}/"):
            kit.extract(member, folder)
    return folder / "networks" / name


def _state() -> dict[str, Any]:
    return {"celsius": celsius(), "megahertz": megahertz(), "held_back": held_back()}


def _complaints(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what makes a measurement doubtful: a busy machine, and one that is held back."""
    found = []
    shares = [turn["share"] for turn in turns if turn["share"] is not None]
    if shares and min(shares) < QUIET:
        found.append(f"something else kept this device busy: a thread got {min(shares):.0%} of its processor")
    first = [turn["first"] for turn in turns]
    if max(first) > SLOWER * min(first):
        hot = [turn["celsius"] for turn in turns if turn["celsius"] is not None]
        at = f", at up to {max(hot):.0f} degrees" if hot else ""
        found.append(
            f"the first network took between {1e3 * min(first):.2f} and {1e3 * max(first):.2f} ms{at}: the clock was "
            "held back, or something else ran; cool the device, or fix its clock, and give --again"
        )
    found += sorted({f"the clock was held back: {turn['held_back']}" for turn in turns if turn["held_back"]})
    return found


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """Show how far something is, and how long it will take, on standard error."""
    started, done = time.time(), [0]

    def step() -> None:
        done[0] += 1
        left = (time.time() - started) * (total / done[0] - 1)
        text = f"{what} {done[0]}/{total}, {int(left // 60)}:{int(left % 60):02d} left"
        print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)

    try:
        yield step
    finally:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, and folders that are missing; a reader never sees half of it.

    Raises:
        PruneError: If it cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as e:
        raise PruneError(f"{path} cannot be written ({e}); name another file with --out.") from e
