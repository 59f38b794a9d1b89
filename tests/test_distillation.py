from __future__ import annotations

import copy
import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import assert_same_tensors, build, fast_and_slow, labelled_batches, make, narrow_yaml, state, tiny_yaml
from task_data import as_task
from trainings import Interrupted, Run, knowing, report_of, soon
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER

from yolo_prune import PruneCallback
from yolo_prune.config.choices import DISTILL_LOSSES
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.host.distillation import check_distillable, prepare, student_of, wrapped_plan
from yolo_prune.host.distillation_losses import channel_wise, choose, outputs
from yolo_prune.surgery.slicing import cut


def distilled(family: str) -> DistillationModel:
    model = build(family).train()
    model.args.imgsz = 64
    return DistillationModel(teacher_model=copy.deepcopy(model), student_model=model).train()


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo11n", "yolo26n", "yolov8n-seg"))
def test_projectors_follow_a_cut_of_the_student(family: str) -> None:
    model = distilled(family)
    teacher, projectors = state(model.teacher_model), copy.deepcopy(model.projector)
    plan = make(student_of(model), 0.5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    done = cut(wrapped_plan(plan, model), [model], optimizer)
    head = len(model.student_model.model) - 1
    for level, (projector, old) in enumerate(zip(model.projector, projectors, strict=True)):
        kept = plan.layers[f"model.{head}.cv2.{level}.0.conv"]["in"]
        assert torch.equal(projector[0].weight, old[0].weight[:, kept])
        assert torch.equal(projector[2].weight, old[2].weight)
    assert_same_tensors(teacher, state(model.teacher_model))
    if family == "yolov8n":
        loss, items = model.loss(labelled_batches()[0])
        loss.sum().backward()
        assert items["dis_loss"] > 0
        optimizer.step()  # it holds the projectors that are trained
    done.undo()
    assert {k: v.shape for k, v in state(projectors).items()} == {k: v.shape for k, v in state(model.projector).items()}


def test_without_distillation_the_plan_is_the_plan() -> None:
    model = build("yolov8n")
    plan = make(model, 0.5)
    assert wrapped_plan(plan, model) is plan and student_of(model) is model


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo26n"))
def test_a_student_that_makes_what_its_teacher_makes_has_nothing_to_learn(family: str) -> None:
    model = distilled(family)
    for module in model.student_model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    choose(model, "outputs")
    batch = labelled_batches()[0]
    losses = []
    for _ in range(2):
        loss, items = model.loss(batch)
        losses.append(float(items["dis_loss"]))
        head = model.student_model.model[-1]
        for branch in ("cv3", "one2one_cv3"):
            for level in getattr(head, branch, None) or ():
                level[-1].bias.data += 1
    assert abs(losses[0]) < 1e-5 and losses[1] > 0.1
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("bins", [1, 16])
def test_outputs_differ_by_classes_and_by_boxes_and_not_where_the_teacher_sees_nothing(bins: int) -> None:
    torch.manual_seed(0)
    teacher = {"scores": torch.randn(2, 3, 50), "boxes": torch.randn(2, 4 * bins, 50)}
    teacher["scores"][:, :, 25:] = -40
    same = {name: values.clone().requires_grad_() for name, values in teacher.items()}
    loss = outputs(same, teacher)
    loss.backward()
    assert abs(float(loss)) < 1e-6 and all(float(v.grad.abs().max()) < 1e-6 for v in same.values())
    for name in teacher:
        other = {**teacher, name: teacher[name] + torch.randn_like(teacher[name])}
        assert float(outputs(other, teacher)) > 0.01
    unseen = {**teacher, "boxes": teacher["boxes"].clone()}
    unseen["boxes"][:, :, 25:] += 5 * torch.randn(2, 4 * bins, 25)
    assert abs(float(outputs(unseen, teacher))) < 1e-6


def test_a_map_is_compared_channel_by_channel_whatever_is_added_to_one() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 5, 6, 7)
    assert abs(float(channel_wise(teacher + torch.randn(1, 5, 1, 1), teacher))) < 1e-6
    assert float(channel_wise(teacher.flip(2), teacher)) > 0.1


def test_a_model_that_was_not_asked_learns_what_ultralytics_compares() -> None:
    models = {kind: distilled("yolov8n") for kind in (None, *DISTILL_LOSSES)}
    for model in models.values():
        model.load_state_dict(models[None].state_dict())
    batch = labelled_batches()[0]
    stock = models[None].loss(batch)[1]["dis_loss"]
    found = {}
    for kind in DISTILL_LOSSES:
        choose(models[kind], kind)
        found[kind] = models[kind].loss(batch)[1]["dis_loss"]
    assert torch.equal(found["features"], stock) and torch.equal(models[None].loss(batch)[1]["dis_loss"], stock)
    assert len({float(loss) for loss in found.values()}) == len(DISTILL_LOSSES)
    assert torch.equal(copy.deepcopy(models["outputs"]).loss(batch)[1]["dis_loss"], found["outputs"])


def test_a_teacher_of_other_outputs_is_refused() -> None:
    student, teacher = build("yolov8n").train(), build("yolo26n")
    student.args.imgsz = 64
    model = DistillationModel(teacher_model=teacher, student_model=student)
    classes = student.model[-1].nc
    with pytest.raises(ConfigError, match=rf"has {classes} classes and 1 bins .* where this one has {classes} and 16"):
        choose(model, "outputs")
    choose(model, "cwd")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_a_run_learns_from_its_dense_self_and_ends_with_a_plain_slim_model(
    own_folder: Path, tiny_data: Path, task: str
) -> None:
    suffix = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}[task]
    data = tiny_data if task == "detect" else as_task(tiny_data, task, own_folder / "data")
    yolo = YOLO(narrow_yaml(f"yolov8n{suffix}", own_folder))
    given = {"segment": {"distill_loss": "cwd"}, "pose": {"distill_loss": "features"}}.get(task, {})
    soon(start=0.34, end=0.67, distill=True, max_drop=0.99, **given).attach(yolo)
    seen: list[tuple[int, bool, float]] = []
    yolo.add_callback(
        "on_train_epoch_end",
        lambda t: seen.append((t.epoch, isinstance(t.model, DistillationModel), float(t.tloss.get("dis_loss", 0)))),
    )
    yolo.train(
        data=str(data),
        epochs=3,
        imgsz=64,
        batch=4,
        workers=0,
        plots=task == "detect",
        project=str(own_folder),
        name="run",
    )
    assert [wrapped for _, wrapped, _ in seen] == [False, True, True]
    assert seen[0][2] == 0 and all(loss > 0 for _, _, loss in seen[1:])
    slim, _ = load_checkpoint(own_folder / "run" / "weights" / "best.pt")
    assert not isinstance(slim, DistillationModel)
    assert sum(p.numel() for p in slim.parameters()) < 0.6 * sum(
        p.numel() for p in load_checkpoint(own_folder / "run" / "weights" / "dense.pt")[0].parameters()
    )
    best, report = own_folder / "run" / "weights" / "best.pt", report_of(yolo.trainer)
    assert abs(report["cuts"][-1]["bytes"] - best.stat().st_size) < 20_000  # without what hooks have read
    with (own_folder / "run" / "results.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [None in row for row in rows] == [False] * 3  # as many cells as columns
    assert [float(row["train/dis_loss"]) > 0 for row in rows] == [False, True, True]
    assert (own_folder / "run" / "results.png").is_file() == (task == "detect")


@pytest.mark.slow
@pytest.mark.parametrize(("given", "optimizer"), [(True, "auto"), (False, "auto"), (False, "MuSGD")])
def test_a_distilled_run_resumes_with_its_teacher(run: Run, own_folder: Path, given: bool, optimizer: str) -> None:
    teacher, model = own_folder / "teacher.pt", tiny_yaml(own_folder)
    YOLO(model).save(teacher)

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Interrupted

    yolo = YOLO(model)
    yolo.add_callback("on_fit_epoch_end", stop)
    prune = soon(distill=str(teacher) if given else True)
    with pytest.raises(Interrupted):
        run(yolo, prune, name="run", optimizer=optimizer)
    again = YOLO(own_folder / "runs" / "run" / "weights" / "last.pt")
    kinds: list[type] = []
    again.add_callback("on_train_epoch_end", lambda t: kinds.append(type(t.model)))
    trainer = run(again, PruneCallback(None), resume=True)
    assert kinds == [DistillationModel] * 2
    with trainer.csv.open(newline="") as lines:
        assert [float(row["train/dis_loss"]) > 0 for row in csv.DictReader(lines)] == [given, True, True, True]


class OfOwnHead(DetectionTrainer):
    """A trainer whose optimizer looks into the network, where a DistillationModel has none of its layers."""

    def build_optimizer(self, model: Any, **given: Any) -> torch.optim.Optimizer:
        assert not any(p is None for p in model.model[-1].parameters())
        return super().build_optimizer(model, **given)


@pytest.mark.parametrize(
    ("prune", "given", "learns"),
    [
        ({}, {}, True),
        ({"max_drop": 0.99}, {}, True),
        ({"distill": False}, {}, False),
        ({"target": "60% sparsity"}, {}, False),
        ({"sizes": ("0.3", "0.5")}, {"epochs": 8}, False),
        ({}, {"trainer": OfOwnHead}, False),
    ],
)
def test_a_model_of_known_classes_learns_from_its_dense_self_by_default(
    run: Run, own_folder: Path, tiny_data: Path, prune: dict[str, Any], given: dict[str, Any], learns: bool
) -> None:
    kinds: list[bool] = []
    yolo = YOLO(knowing(own_folder, tiny_data))
    yolo.add_callback("on_train_epoch_end", lambda t: kinds.append(isinstance(t.model, DistillationModel)))
    trainer = run(yolo, soon(**{"steps": 1, **prune}), **given)
    assert kinds[0] is False and any(kinds) == learns
    assert report_of(trainer)["config"]["distill"] is learns
    assert ("train/dis_loss" in trainer.csv.read_text(encoding="utf-8")) == learns
    assert trainer.args.distill_model == (str(trainer.wdir / "dense.pt") if learns else None)


def test_a_default_is_that_of_the_interrupted_run(
    run: Run, own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(trainer: Any) -> None:
        if trainer.epoch == 2:
            raise Interrupted

    yolo = YOLO(knowing(own_folder, tiny_data))
    yolo.add_callback("on_train_epoch_start", stop)
    with pytest.raises(Interrupted):
        run(yolo, soon(), name="run")
    monkeypatch.setattr(LOGGER, "propagate", True)
    trainer = run(YOLO(own_folder / "runs" / "run" / "weights" / "last.pt"), soon(), resume=True)
    assert isinstance(trainer.model, DistillationModel) and report_of(trainer)["config"]["distill"] is True
    assert "keeps its own configuration" not in caplog.text


def host(task: str = "detect", distill_model: str | None = None, compile: bool | str = False) -> Any:
    return SimpleNamespace(args=SimpleNamespace(task=task, distill_model=distill_model, compile=compile))


def test_what_cannot_be_distilled_is_refused(own_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="distils detect, segment, pose, obb, and this run's task is classify"):
        prepare(host("classify"), True)
    with pytest.raises(UnsupportedError, match="this one has a RTDETRDecoder; use distill=False"):
        check_distillable(SimpleNamespace(model=[type("RTDETRDecoder", (), {})()]))
    with pytest.raises(UnsupportedError, match=r"distill=True with compile=default: .* use compile=False or"):
        prepare(host(compile="default"), True)
    with pytest.raises(ConfigError, match=r"distill=nowhere\.pt: there is no such file; give the path of a \.pt file"):
        prepare(host(), "nowhere.pt")
    with pytest.raises(ConfigError, match=r"distill=True and distill_model=big\.pt both name a teacher"):
        prepare(host(distill_model="big.pt"), True)
