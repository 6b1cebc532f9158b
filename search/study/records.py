"""Names of what studies and their trials hold in Optuna's storage.

The strings are a file format: stored studies hold them, so none of them changes.
"""

from __future__ import annotations

# the study itself
DEFINITION = "definition"  # every setting that a trial's result depends on
DRAFT = "-draft"  # behind the name of a study: the name of its draft
TEACHER = "teacher"  # the teacher's values
STARTED = "anchors"  # whether the initial designs are enqueued
RANGE = "range_test"  # what the range test of the learning rate gave
RANGES = "ends"  # the weakest and the strongest value of each parameter
SENSITIVITIES = "losses of changes alone"  # the losses of the sensitivity table
AHEAD = "measured_ahead"  # parameters of plans, what they cost over the teacher, and on which machine

# a trial, as it was asked for
WORKER = "worker"  # who runs it
ASKED = "asked_epochs"  # for how long it is to be trained, where that was named when it was enqueued
INTERRUPTED = "interrupted"

# a trial, as it was evaluated
KEY = "plan_key"  # equal plans have equal ones
PLAN = "plan"  # in words
PREDICTED = "told_about"  # costs that models predicted before it was built
INEXACT = "inexact_costs"  # names of costs that were measured otherwise than their formula says
RELATIVE = "measured_over_teacher"  # measured costs that have a model, and on which machine
VALUES = "measured"  # every objective, by name
EXCESS = "excess"  # by how much each limit is missed, relative to it
EPOCHS = "epochs"  # for how long it was trained
RATE = "learning_rate"
RUNG = "rung"  # epochs, and the objectives at the check of early stopping
STOPPED = "stopped"  # whether early stopping ended it
REASON = "reason"  # why it ended without values; a failed trial that has none was cut short
REPLAY = "replay_of"  # the trial of the same plan whose result it repeats
SECONDS = "cpu_seconds"

# a trial of the draft
PROXY_LOSS = "one_shot_loss"  # name of its first value
SHORT_TRAINING = "mended"  # what a few steps of training left of its proxy loss, as a ratio
