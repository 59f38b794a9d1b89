"""Data sets as Ultralytics reads them."""

from __future__ import annotations

from ultralytics.data.utils import check_cls_dataset, check_det_dataset

from yolo_prune.errors import ConfigError, describe_error


def check_data(data: str, task: str) -> None:
    """Refuse a data set before hours of work, of which it would be the end.

    Args:
        data: As a user gives it.
        task: Ultralytics' name of the task; classification has a folder for each class.

    Raises:
        ConfigError: If Ultralytics cannot read it.
    """
    try:
        (check_cls_dataset if task == "classify" else check_det_dataset)(data)
    except Exception as e:  # Ultralytics names no common class for what it refuses
        raise ConfigError(f"data={data} cannot be read ({describe_error(e)}); give what 'yolo val' takes.") from e
