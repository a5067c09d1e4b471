"""What dpeval's loop trains: how a batch is made, its loss, and how its samples are counted.

The loop, the memory forecast and the check before a run use tasks only through :class:`Task`.
"""

from __future__ import annotations

from dpeval.components.tasks.base import ForecastTask, Rank, Task
from dpeval.components.tasks.causal_lm import CausalLM
from dpeval.components.tasks.classification import Classification
from dpeval.components.tasks.user_function import Training, UserFunction
from dpeval.config import CALLABLE, CAUSAL_LM, Config

__all__ = ["ForecastTask", "Rank", "Task", "Training", "forecast_task", "task_of"]


def task_of(config: Config) -> Task:
    """The task that `config` describes; not for scripts."""
    if config.task.kind == CALLABLE:
        return UserFunction(config)
    return forecast_task(config)


def forecast_task(config: Config) -> ForecastTask:
    """The task that `config` describes, if dpeval builds its model."""
    return CausalLM(config) if config.task.kind == CAUSAL_LM else Classification(config)
