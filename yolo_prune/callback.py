"""The events of an Ultralytics run that pruning listens to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from yolo_prune.config.settings import PruneConfig
from yolo_prune.errors import UnsupportedError
from yolo_prune.host.names import check_host
from yolo_prune.host.patches import patch

if TYPE_CHECKING:
    from ultralytics import YOLO
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.training.session import Session
    from yolo_prune.training.setup import Prepared


class PruneCallback:
    """Prunes inside a training run of stock Ultralytics.

    Args:
        target: Share of the dense model's multiply-adds to remove, 0 <= target < 1; also ``auto``, a PruneConfig, a
            dict of options or a YAML file. 0 cuts nothing, but lets a pruned checkpoint be trained on as it is. None
            takes the configuration from the checkpoint that is resumed.
        **options: Any option of PruneConfig.

    Raises:
        ConfigError: If an option is wrong.

    Examples:
        >>> model = YOLO("yolo11n.pt")
        >>> PruneCallback(0.5, steps=3).attach(model)
        >>> model.train(data="coco8.yaml", epochs=60)
        >>> model.export(format="onnx")  # model is now the pruned best.pt

        Several models from one run, `weights/best-0.3.pt` and so on; and as much as can go for 1 % of the accuracy:

        >>> PruneCallback(sizes=[0.3, 0.5, 0.7]).attach(model)
        >>> PruneCallback("auto", max_drop=0.01).attach(model)

        The same by hand:

        >>> for event, function in PruneCallback(0.5).events.items():
        ...     model.add_callback(event, function)  # on one device; for several, use attach
    """

    def __init__(self, target: Any = 0.5, **options: Any) -> None:
        if target is None and options:
            raise UnsupportedError("options cannot be changed when a run is resumed; PruneCallback(None) takes none.")
        self.config = (
            None if target is None else PruneConfig.from_dict({**PruneConfig.load(target).to_dict(), **options})
        )
        self._session: Session | None = None
        self._prepared: Prepared | None = None

    @property
    def events(self) -> dict[str, Callable[[BaseTrainer], None]]:
        """Event name -> function, for ``model.add_callback``."""
        return {
            "on_pretrain_routine_start": self.on_pretrain_routine_start,
            "on_pretrain_routine_end": self.on_pretrain_routine_end,
            "on_train_epoch_start": self.on_train_epoch_start,
            "on_train_batch_end": self.on_train_batch_end,
            "on_fit_epoch_end": self.on_fit_epoch_end,
            "on_train_end": self.on_train_end,
            "teardown": self.teardown,
        }

    def attach(self, model: YOLO) -> PruneCallback:
        """Listen to the training runs of a model, and return self.

        Raises:
            UnsupportedError: If the model cannot be trained, or already has a PruneCallback.
        """
        from torch import nn
        from ultralytics.utils.torch_utils import unwrap_model

        if not hasattr(model, "add_callback"):
            raise UnsupportedError(f"{type(model).__name__} takes no callbacks; pass YOLO('….pt').")
        if isinstance(model.model, nn.Module):
            model.model = unwrap_model(model.model)  # of torch.compile or DataParallel; training wraps anew
        else:
            raise UnsupportedError(f"{model.model} is an exported model, which cannot be trained; pass its .pt file.")
        listeners = [getattr(f, "__self__", None) for f in model.callbacks["on_train_epoch_start"]]
        if any(isinstance(owner, PruneCallback) for owner in listeners):
            raise UnsupportedError("this model already has a PruneCallback; load the model anew to attach another.")
        _listen(model, self)
        for name, stand_in in (
            ("_smart_load", _smart_load),
            ("tune", partial(_tune, config=self.config)),
            ("train", _train),
        ):
            before = vars(model).get(name)  # of a callback that was removed since
            stock = before.args[0] if isinstance(before, partial) else getattr(model, name)
            patch(model, name, partial(stand_in, stock))
        return self

    def check_events(self, callbacks: Mapping[str, Sequence[Callable[..., Any]]]) -> None:
        """Raise an UnsupportedError if events of this callback are not among those of a model or a trainer."""
        if missing := [event for event, function in self.events.items() if function not in callbacks.get(event, ())]:
            raise UnsupportedError(
                f"this PruneCallback is not told of {', '.join(missing)}: model.reset_callbacks() or clear_callback() "
                "has removed it; call attach(model) again, after them, or load the model anew to train without pruning."
            )

    def on_pretrain_routine_start(self, trainer: BaseTrainer) -> None:
        """Refuse what cannot work, and let a pruned checkpoint be rebuilt pruned."""
        check_host()
        self.check_events(trainer.callbacks)
        from yolo_prune.training.setup import prepare

        self._prepared = prepare(trainer, self.config, self._prepared)

    def on_pretrain_routine_end(self, trainer: BaseTrainer) -> None:
        """Model, EMA and optimizer exist: look at the network and check the target."""
        from yolo_prune.training.session import Session

        self.check_events(trainer.callbacks)
        if self._prepared is None:
            raise UnsupportedError(
                "with several GPUs Ultralytics tells its first process only that a run begins; use "
                "PruneCallback(...).attach(model), which reaches all of them, instead of add_callback."
            )
        self._session = Session(trainer, self.config, self._prepared)

    def on_train_epoch_start(self, trainer: BaseTrainer) -> None:
        """Cut, if it is time."""
        if self._session:
            self._session.before_epoch()

    def on_train_batch_end(self, trainer: BaseTrainer) -> None:
        """Count."""
        if self._session:
            self._session.after_batch()

    def on_fit_epoch_end(self, trainer: BaseTrainer) -> None:
        """Note the epoch's fitness."""
        if self._session:
            self._session.after_epoch()

    def on_train_end(self, trainer: BaseTrainer) -> None:
        """Hand over."""
        if self._session:
            self._session.finish()

    def teardown(self, trainer: BaseTrainer) -> None:
        """Raise what went wrong at the end, last of all."""
        session, self._session, self._prepared = self._session, None, None
        if session:
            session.close()


def _listen(model: YOLO, prune: PruneCallback | PruneConfig) -> None:
    """Add the events to a model that knows all else, or whose callbacks were reset."""
    prune = prune if isinstance(prune, PruneCallback) else PruneCallback(prune)
    for event, function in prune.events.items():
        model.add_callback(event, function)


def _train(stock: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Stand in for a model's ``train``: refuse to train without pruning where the callbacks were removed."""
    callbacks = stock.__self__.callbacks  # type: ignore[attr-defined]  # a method of the model
    owners = [getattr(function, "__self__", None) for functions in callbacks.values() for function in functions]
    prune = next((owner for owner in owners if isinstance(owner, PruneCallback)), None) or PruneCallback(0)
    prune.check_events(callbacks)
    return stock(*arguments, **settings)


def _tune(stock: Callable[..., Any], *arguments: Any, config: PruneConfig | None, **settings: Any) -> Any:
    """Stand in for a model's ``tune``: its trials prune, too."""
    from yolo_prune.host.tuning import tune  # loads ultralytics

    return tune(stock, config, _listen, *arguments, **settings)


def _smart_load(stock: Callable[[str], Any], key: str) -> Any:
    """Stand in for a model's ``_smart_load``: its trainer tells every process of a run on several GPUs."""
    loaded = stock(key)
    return telling_all(loaded) if key == "trainer" else loaded


@lru_cache
def telling_all(trainer_class: type[BaseTrainer]) -> type[BaseTrainer]:
    """Return a trainer class whose ``on_pretrain_routine_start`` reaches our callbacks in every process.

    Ultralytics runs that event in the first of the processes that train, and not in the one that launches them, which
    builds the network from its ``model.yaml`` all the same. The class is made here, and so travels to the others by
    value.
    """

    class Telling(trainer_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            from ultralytics.utils import RANK

            from yolo_prune.host.trainer import preserve_attributes

            if not self.ddp and RANK in {-1, 0}:
                return  # has been told
            for function in self.callbacks["on_pretrain_routine_start"]:
                if isinstance(getattr(function, "__self__", None), PruneCallback):
                    if self.ddp:  # the launcher looks, and leaves the arguments for the others as they are
                        with preserve_attributes(self.args, "quantize", "distill_model"):
                            function(self)
                    else:
                        function(self)

    Telling.__name__ = Telling.__qualname__ = trainer_class.__name__
    return Telling
