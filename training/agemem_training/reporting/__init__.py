"""What a training run records while it goes on, and what it tells when it has ended. No torch.

.. code-block:: text

    figures.py     what episodes came to, by name: evaluate_figures
    metrics.py     the records, iteration by iteration, and their file
    intervals.py   how sure a figure is
    comparing.py   two evaluations on the same tasks
    results.py     all of a run, as data
    curves.py      … as a picture (axes.py: what it is drawn from)
    markdown.py    … as text (tables.py: what it is written with)
    report.py      report.md, report.json and curves.png
    model_card.py  README.md of a checkpoint
"""

from agemem_training.reporting.figures import EpisodeFigures, evaluate_figures
from agemem_training.reporting.metrics import Cost, Evaluation, Iteration, Metrics, MetricsFile, Rollouts, Update
from agemem_training.reporting.model_card import write_model_card
from agemem_training.reporting.report import write_report
from agemem_training.reporting.results import AFTER, BEFORE, DURING, Results, Run, SkillGate, installed_versions

__all__ = [
    "AFTER",
    "BEFORE",
    "DURING",
    "Cost",
    "EpisodeFigures",
    "Evaluation",
    "Iteration",
    "Metrics",
    "MetricsFile",
    "Results",
    "Rollouts",
    "Run",
    "SkillGate",
    "Update",
    "evaluate_figures",
    "installed_versions",
    "write_model_card",
    "write_report",
]
