"""Where tasks come from: HotpotQA, a generator of stories, or what this server recorded."""

from agemem_training.tasks.source import Split, TaskSource
from agemem_training.tasks.task import Change, Fact, Task

__all__ = ["Change", "Fact", "Split", "Task", "TaskSource"]
