"""Hooks that mark the phases of a script's step; they are installed only while it is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dpeval.meter.ddp import DdpHooks, StepClock
from dpeval.record.phases import Phase
from dpeval.util.display.plural import counted


class Hooks:
    """Marks the phases of a step by watching torch.

    `forward` starts with the call of the watched model and ends where autograd starts, so it
    includes the loss. torch has no hook for the start and end of a backward pass, nor for an update
    that a gradient scaler skips because a gradient is not finite; for these, functions of torch are
    replaced while the script is measured.
    """

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._ddp = DdpHooks(clock)
        self._ddp.install()
        self._watched: list[nn.Module] = []
        self._seeking: Any = None
        self._is_forward = False
        self._depth = 0
        """Nesting depth of contexts, passes and updates; the outermost one names the phase."""
        self._undo = contextlib.ExitStack()
        self.has_updated = False
        """Whether the open step has made an update."""
        self._is_evaluating = False
        """Whether the open step has called a watched model without gradients."""
        self._steps = self._evaluating_steps = 0

    @property
    def missing(self) -> list[str]:
        """What cannot be measured, one line each."""
        return list(self._ddp.untimed)

    @property
    def doubts(self) -> list[str]:
        """What may be wrong with the steps, one line each."""
        evaluating = self._evaluating_steps
        # A training that needs a pass without gradients, of a teacher for instance, always does.
        if not 0 < evaluating <= self._steps / 2:
            return []
        return [
            f"{counted(evaluating, 'step')} of {self._steps} called the model without gradients, "
            "which counts as other; put an evaluation within the loop into `with meter.pause():`"
        ]

    def watch(self, *models: nn.Module) -> None:
        """Let `models` mark the start of the forward pass, and time the communication of a DDP."""
        for model in models:
            if any(model is one for one in self._watched):
                continue
            self._watched.append(model)
            self._undo.callback(model.register_forward_pre_hook(self._forward_begins).remove)
            wrapped = getattr(model, "_orig_mod", model)  # of torch.compile
            if isinstance(wrapped, DistributedDataParallel):
                self._ddp.time(wrapped)
        if self._watched and self._seeking is not None:
            self._seeking.remove()

    def install(self) -> None:
        """Mark phases from now on."""
        self._ddp.time_all()
        if not self._watched:
            self._seeking = register_module_forward_pre_hook(self._seek)
            self._undo.callback(self._seeking.remove)
        for handle in (
            register_optimizer_step_pre_hook(self._update_begins),
            register_optimizer_step_post_hook(self._update_ends),
        ):
            self._undo.callback(handle.remove)
        self._replace(torch.autograd, "backward", self._backward_of)
        self._replace(torch.amp.GradScaler, "step", self._scaled_update_of)

    def remove(self) -> None:
        """Stop marking. DDP keeps its hook, which still communicates."""
        self._undo.close()
        self._ddp.remove()

    def end_step(self) -> None:
        """Discard what the ending step has left open, such as an update that raised."""
        self._steps += 1
        self._evaluating_steps += self._is_evaluating
        self.has_updated = self._is_forward = self._is_evaluating = False
        self._depth = 0

    def leave_out(self) -> None:
        """Exclude what the script has done since the open step's last mark, between two loops."""
        self._clock.leave_out()
        self._is_evaluating = False

    @contextlib.contextmanager
    def named(self, phase: Phase) -> Iterator[None]:
        """Count the time in this context as `phase`."""
        with self._outermost(lambda: self._clock.mark(phase)):
            yield

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Exclude the time in this context from the step."""
        with self._outermost(self._clock.leave_out):
            yield

    @contextlib.contextmanager
    def _outermost(self, mark: Callable[[], None]) -> Iterator[None]:
        self.mark_before()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                mark()

    def mark_before(self) -> None:
        """Mark the phase that ends now."""
        if not self._depth:
            self._clock.mark("forward" if self._is_forward else "other")
            self._is_forward = False

    def _seek(self, module: nn.Module, _inputs: Any) -> None:
        """Watch the first module with parameters that is called in training mode."""
        if self._depth or not torch.is_grad_enabled() or not self._clock.is_in_step:
            return
        if any(parameter.requires_grad for parameter in module.parameters()):
            self.watch(module)
            self._forward_begins(module, _inputs)

    def _forward_begins(self, _module: nn.Module, _inputs: Any) -> None:
        if self._depth:
            return
        if not torch.is_grad_enabled():
            self._is_evaluating = self._clock.is_in_step
        elif not self._is_forward:
            self._clock.mark("other")
            self._is_forward = True

    def _backward_of(self, backward: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any, **kwargs: Any) -> None:
            self.mark_before()
            self._depth += 1
            try:
                backward(*args, **kwargs)
            finally:
                self._depth -= 1
            if not self._depth:
                self._clock.mark("backward")

        return timed

    def _scaled_update_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            made = step(*args, **kwargs)
            self.has_updated = True
            return made

        return noted

    def _update_begins(
        self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.mark_before()
        self._depth += 1
        if self._depth > 1:
            return None
        # torch passes the optimizer itself as the first of `args`.
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._closure_of(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._closure_of(args[1]), *args[2:]), kwargs
        return None

    def _closure_of(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def timed() -> Any:
            """The passes that an optimizer has its closure make are not part of the update."""
            self._clock.mark("optimizer")
            depth, self._depth = self._depth, 0
            try:
                return closure()
            finally:
                self.mark_before()
                self._depth = depth

        return timed

    def _update_ends(self, *_: Any) -> None:
        self.has_updated = True
        self._depth -= 1
        if not self._depth:
            self._clock.mark("optimizer")

    def _replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, wrap(original))
        self._undo.callback(setattr, owner, name, original)
