"""Defences that are broken on purpose, to see whether the bench notices.

A bench that believes their numbers is broken itself. Each stands before any classifier and hides
its gradient (or its failures) by one mechanism of the literature. It declares in `surrogates` the
way around it, so that its robust accuracy is known: the classifier's own. Plans have them only
where they are named, as the plan `gallery` does. That plan adds three of the baseline defences that
were broken as they were published: `bit-depth`, `jpeg` and `resize-pad`.

The honest controls are `undefended`, `at` and `tta[shift=0,mean=prob]`: nothing hard may be flagged
on those. Defensive distillation is left out: it needs a network of its own, and what that network
learns is what `gallery-scaled` does.
"""
