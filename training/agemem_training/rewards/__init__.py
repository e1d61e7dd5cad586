r"""The reward of an episode (AgeMem, section 3.5 and appendix A.2): pure functions of ledger, record and judge scores.

.. code-block:: text

    R(τ) = w_task·R_task + w_context·R_context + w_memory·R_memory + P          w = 1/3 each
    R_task    = grade of the answer in [0, 1]; -1 without one
    R_context = (compression + preventive + preservation) / 3
    R_memory  = (storage + maintenance + relevance) / 3
    P         = -1 [ran out of rounds] - 0.5 [context over its budget] - 0.02 · calls without effect (strict alone)

    term          paper                                         strict
    compression   max(0, 1 - T_used/T_max)                      the same
    preventive    a summary or filter succeeded before the      1 if one freed tokens when it was due (context over half
                  limit was reached                             of the budget) or none was ever due; 0 if one lost a
                                                                gold fact
    preservation  the query's key items stand in the context    the gold facts do, the assistant's own words aside
    storage       N_high / max(1, N_total) of the entries       F1 of precision and coverage over the policy's entries
                  added in stage 1                              at the end
    maintenance   an update or a delete was carried out         share of the changes that updates or deletes brought
                                                                into the store; 0 if something true was lost
    relevance     share of the gold facts retrieved in stage 3  the same

    released  max(-1, min(1, 0.5·R_task + 0.2·tools + 0.15·R_context + 0.15·R_memory + P)), the terms of "paper"
    answer    R_task

Only what succeeded counts, and only by the policy: rows of the ledger with ``Actor.POLICY`` and calls with a result.
Thoughts, failed calls and what a turn says about itself are read by none of these.

Deviations and choices:

* Weights 1/3 (C.4), not 1.0 (section 4.1).
* No answer was given if it is blank, or the episode ended otherwise. Then compression is 0 as well, as it is defined by
  the tokens when the answer is given, and a policy that gives up at once would be paid for its short context.
* Ending by the same calls again and again, or by too many, counts as running out of rounds: without those limits it
  would have.
* "High" (storage, paper) is an entry whose last text of stage 1 tells a gold fact. Relevance is the share of gold
  facts. Both can be graded by an LLM judge instead (:class:`JudgeScores`).
* An update that leaves the text as it was is none: the ledger also writes such rows when a text is added again with
  other metadata.
* Key items: a query without any leaves nothing to lose, so preservation (paper) is then 1 with any answer.
* Preventive, strict: a step is due if its prompt was over half of the budget, except the step that gives the last
  answer, after which nothing can overflow. Where none was due, 1: neither short tasks nor those who keep the context
  small are punished, and a filter at every turn earns nothing that doing nothing does not. 0 if any reduction, due or
  not, lost a gold fact: one told in that step's prompt and not in the next one of the same session. A stage that ends
  throws its context away by itself, so its last step can lose nothing.
* Storage, strict: an entry is good if it tells a fact that no older entry tells, and nothing outdated. Facts that
  entries of others tell need not be stored again; where none is left to store and the policy has no entry, it is 1.
* Maintenance, strict: the share lets two changes earn more than one. Without changes 1, unless something true was lost:
  tasks without changes are not punished. True are the task's facts and the background memories that are not outdated.
* A task without gold facts ("unknown" is right): preservation (strict) and relevance are 1 if the policy looked for it
  in stage 3 and no retrieval there showed anything outdated; finding nothing is an effect there. Nothing stored can
  be useful for such an answer, so storage (paper) is 0.
* "Tools" of the released code is not defined in the paper: here the share of the policy's calls with an effect.

Holes that are left: one entry that tells many facts is as good as many entries, and a retrieval of everything is
relevant as well. Compression is what both cost. And a filter that is due is *preventive* however little it takes out,
also where the turn and the server's report of it are longer than that.
"""

from agemem_training.rewards.reward import JudgeScores, Reward, RewardSettings, Terms, Variant, judged, reward

__all__ = ["JudgeScores", "Reward", "RewardSettings", "Terms", "Variant", "judged", "reward"]
