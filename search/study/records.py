"""Names of the attributes of studies and trials in Optuna's storage.

The strings are a file format: stored studies contain them. Some had other names before; they are read, too
(`search.study.attributes`).
"""

from __future__ import annotations

# attributes of a study
DEFINITION = "definition"  # every setting that the result of a trial depends on, by its path
ANSWERS = "teacher_answers"  # what the teacher answers to a few calibration inputs, to notice changes of its code
DRAFT = "-draft"  # suffix: the draft of a study has the name of the study and this
FAILING = "failing_precisions"  # for each layer, the pairs of bits at which the runtime failed before the search
GOAL = "goal"  # text of the goal, and the name of the runtime that its objectives are measured on
KEEP = "keep_gb"  # gigabytes that a folder of its files may take
ARTIFACTS = "artifacts"  # URL of the store to which trained weights are uploaded
OUTLINE = "outline"  # names, directions and limits, from which tables are printed (`search.study.outline`)
EIGHT_BITS = "teacher_at_8_bits"  # the value of every objective for it at 8 bits, not trained; empty without 8 bits
SPENT = "cpu_seconds_by_activity_"  # begins a name: CPU seconds of one process of a run, by activity
TEACHER = "teacher"  # the value of every objective for the teacher
STARTED = "anchors"  # whether the initial designs are enqueued
RANGE = "relative_range_test"  # result of the range test of the learning rate; 0.1 stored another loss in range_test
DESIGNS = "initial_designs"  # their parameters, before they are enqueued
RANGES = "ends"  # for each parameter, its values at the weakest and the strongest compression
SENSITIVITIES = "relative losses of changes alone"  # of the sensitivity table; those of 0.1 had other units
AHEAD = "measured_ahead"  # measured before the search: parameters of plans, costs relative to the teacher, the machine

# attributes of a ticket, a trial of the study of the workers (`search.study.workers`)
WORKERS = "-workers"  # suffix: the workers of a study have the name of the study and this
TASK = "task"  # what it is for
RESULT = "result"  # what the task gave
LOCKED_ON = "locked_on"  # of a worker: the running system on which it holds a lock
PULSE = "pulse"  # of a worker: a number that changes as long as it is alive

# attributes of a trial: the request
WORKER = "worker"  # name of the worker that runs it; in 0.1 its host and process
CHECKPOINT = "checkpoint"  # SHA-256 of the last checkpoint of its training in the store
PLACE = "in_place_of"  # number of the first of these trials, if several workers left it unfinished one after the other
RERUN = "rerun_of"  # number of the trial that a worker left unfinished, and that this one runs again
ASKED = "asked_epochs"  # epochs that it is to be trained for, if it was enqueued with a number

# attributes of a trial: the result
KEY = "plan_key"  # digest of the plan; equal plans have equal digests
PLAN = "plan"  # the plan in words
INEXACT = "inexact_costs"  # names of costs whose measurement differs from the exact cost, as JSON
RELATIVE = "measured_over_teacher"  # costs that have a model, over those of the teacher, and the machine, as JSON
EPOCHS = "epochs"  # number of epochs that it was trained for; 0 if it was measured as it was compressed
RATE = "learning_rate"  # the highest learning rate of its training
EARLY_CHECK = "early_check"  # the epochs and the objectives at the check of early stopping, as JSON
STOPPED = "stopped"  # what was out of reach when early stopping ended it: LIMIT or TRIAL; in 0.1 only that it did
LIMIT, TRIAL = "limit", "trial"
REASON = "reason"  # why it ended without values; a failed trial without a reason was interrupted
REPLAY = "replay_of"  # number of the earlier trial of the same plan whose result it repeats
WEIGHTS = "weights_sha256"  # SHA-256 of the file of its weights; also in records of confirmations and verifications
CONFIRMED_RUN = "confirmed:"  # prefix of trial and seed: the record of a training of `confirm`, if there is a store
STORE = "weights_store"  # URL of the store that has a copy of its weights, under their SHA-256
TRAINED_LOSS = "trained_loss"  # proxy loss on validation examples after the training
UNDONE = "training_undone"  # whether it is as it was before its training, which made it worse
SECONDS = "cpu_seconds"  # CPU seconds that it took

# prefixes of attributes of a trial: one number for each name (`search.study.attributes`)
PREDICTED = "predicted:"  # and a cost: what a model predicted before the network was built
VALUES = "measured:"  # and an objective: its measured value
EXCESS = "excess:"  # and a limit: by how much it is exceeded, relative to its bound; zero or less where it is met

# attributes of the draft
INPUTS = "scored_inputs"  # number of training inputs that its plans are scored on
TABLE_RANKS = "table_ranks"  # rank correlation of the sensitivity table's sums with proxy losses, at similar cost

# attributes of a trial of the draft
PROXY_LOSS = "one_shot_loss"  # name of its first value, the proxy loss
SHORT_TRAINING = "short_training_ratio"  # proxy loss after the short training over that before it; None if it failed
