"""Stories made up by a generator: facts told, changed and taken back, then talk on something else, then a question."""

from agemem_training.tasks.synthetic.stories import LEVELS, Difficulty, Stories

__all__ = ["LEVELS", "Difficulty", "Stories"]
