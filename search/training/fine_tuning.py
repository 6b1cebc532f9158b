"""Train a network in place, with or without a teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from objectives.outputs import device_of, outputs
from objectives.samples import NotFinite, ensure_finite, seed_all
from objectives.trees import at, leaves, like, map_tensors, moved, run
from search.study import machine
from search.study.errors import Diverged, UserError
from search.study.machine import spare_memory
from search.training.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from objectives import Data
    from objectives.data import Batch
    from objectives.trees import Tree
    from search.study.spec import Recipe
    from search.training.checkpoint import Checkpoint
    from spaces import Recovery

WARM_UP_SHARE = 0.05  # share of the steps over which the learning rate rises (chosen)
KEPT_SHARE = 0.25  # largest share of the machine's memory for the teacher's outputs (chosen)
MAX_GRADIENT_NORM = 5.0  # larger gradients are clipped; a pruned network starts with a few very large ones (chosen)


def fine_tune(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Data,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
    progress: Callable[[float], None] = lambda done: None,  # noqa: ARG005
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train `student` in place with the recovery's loss, on the student's device.

    Parameters
    ----------
    student
        The network; left in evaluation mode.
    teacher
        The teacher's outputs, which the loss may use.
    examples
        The training set.
    recovery
        The recovery, which defines the loss.
    recipe
        The schedule and the optimizer; with 0 epochs nothing is trained.
    seed
        Seed of the order of the examples, the augmentation and the dropout.
    progress
        Called after each step with the share of the steps that is done.
    checkpoint
        Where a long training is saved now and then, and from where it goes on.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    student.eval()
    if not (count := recipe.steps(examples)):
        return
    rate = recipe.learning_rate
    assert rate is not None, "a range test sets it"
    losses: list[Tensor] = []
    steps_per_pass = examples.steps(recipe.batch_size)
    rates = [rate * warmed(step, count) for step in range(count)]
    steps = training_steps(student, teacher, examples, recovery, recipe, seed, rates, checkpoint)
    for step, loss in steps:
        losses.append(loss)
        progress(step / count)
        if step % steps_per_pass == 0 or step == count:  # reading every loss would wait for the device
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean):
                raise Diverged(f"the loss became {mean} within {step} of {count} steps; try a lower learning rate")
    student.eval()
    spare_memory()


def training_steps(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Data,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
    rates: Sequence[float],
    checkpoint: Checkpoint | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Train `student` in place, one step for each learning rate; yield the number of each step, from 1, and its loss.

    The steps that a checkpoint holds are left out.
    """
    device = device_of(student)
    generator = torch.Generator().manual_seed(seed)
    seed_all(seed)  # for dropout, and the transforms and the order of a loader
    optimizer = recipe.optimizer(
        [p for p in student.parameters() if p.requires_grad], lr=rates[0], weight_decay=recipe.weight_decay
    )
    precision = Precision(device)
    precision.prepare(student.train())
    resumed = checkpoint.load() if checkpoint is not None else None
    done = 0 if resumed is None else resumed.steps
    if resumed is not None:
        resumed.restore(student, optimizer)
    batches = examples.training_batches(recipe.batch_size, generator)
    one_pass = examples.keyed_count // examples.batch_size(recipe.batch_size)  # of all that `keyed` yields
    keeps = recipe.augment is None and len(rates) >= one_pass
    for step, (rate, batch) in enumerate(zip(rates, batches, strict=False), 1):
        if step <= done:  # drawn again, as the order of the examples and the augmentation follow from it
            if recipe.augment is not None:
                recipe.augment(batch.inputs, generator)
            continue
        if resumed is not None and step == done + 1:
            resumed.restore_random_numbers()
        for group in optimizer.param_groups:
            group["lr"] = rate
        given = batch.inputs if recipe.augment is None else recipe.augment(batch.inputs, generator)
        inputs = map_tensors(moved(given, device), precision.laid_out)
        teacher_outputs = teacher.outputs_of(inputs, batch.keys if keeps else None)
        labels = moved(batch.labels, device)
        with precision.forward():
            output = run(student, inputs)
        loss = loss_of(recovery, map_tensors(output, precision.full), teacher_outputs, labels)
        _ensure_labels(batch, output, loss.detach())
        precision.step(loss, student, optimizer, MAX_GRADIENT_NORM)
        if checkpoint is not None:
            checkpoint.after(step, student, optimizer)
        yield step, loss.detach()
    precision.finish(student)


def _ensure_labels(batch: Batch, output: Tree, loss: Tensor) -> None:
    """Check that labels which are not finite are none for the loss, either; one of the user's own may leave them out.

    Raises
    ------
    NotFinite
        If only they explain that the loss is not finite.
    """
    try:
        places = None if batch.keys is None else batch.keys.tolist()
        ensure_finite(batch.labels, "training split", places, "labels")
    except NotFinite:
        if not math.isfinite(float(loss)) and all(bool(tensor.isfinite().all()) for tensor in leaves(output)):
            raise


def loss_of(recovery: Recovery, output: Tree, teacher_outputs: Tree, labels: Tree) -> Tensor:
    """Return the loss of a network's output in training mode, the mean over its heads.

    Raises
    ------
    UserError
        If no output has the teacher's shape.
    """
    heads = _heads(output, teacher_outputs)
    return torch.stack([recovery.loss(head, teacher_outputs, labels) for head in heads]).mean()


def _heads(output: Tree, teacher_outputs: Tree) -> list[Tree]:
    """Return the outputs to train: of one tensor, also extra heads that some networks have in training only.

    Raises
    ------
    UserError
        If no output has the teacher's shape.
    """
    if isinstance(output, Tensor) or teacher_outputs is None:
        return [output]
    if not isinstance(teacher_outputs, Tensor):
        return [like(output, teacher_outputs)]
    heads = [tensor for tensor in leaves(output) if tensor.shape == teacher_outputs.shape]
    if not heads:
        raise UserError(
            f"in training mode the network must also return an output of shape {tuple(teacher_outputs.shape)}, but it "
            f"returned {[tuple(tensor.shape) for tensor in leaves(output)]}"
        )
    return heads


class TeacherOutputs:
    """A teacher whose outputs for the training set are computed once, as far as they fit in memory.

    They are kept if an example is the same at every reading, and if all of them take at most a quarter of the memory of
    the machine. Outputs depend a little on which examples are in a batch (in the last bits), so all are computed in a
    fixed order: a training gives the same weights, whatever its process has trained before.

    Parameters
    ----------
    model
        The teacher in evaluation mode, on the device of the training.
    examples
        The training set.
    """

    def __init__(self, model: nn.Module, examples: Data) -> None:
        self.model = model
        self.examples = examples
        self._kept: Tree = None
        self._is_kept = torch.zeros(0, dtype=torch.bool)  # for each example; empty if there is too little memory
        self._fits: bool | None = None

    def outputs_of(self, inputs: Tree, keys: Tensor | None) -> Tree:
        """Return the outputs for a batch, such as (B, classes): those kept for its keys, new ones without keys.

        A training of less than one pass gives no keys: to compute all outputs would take longer than the training.
        """
        if keys is not None:
            self._keep_all()
            if len(self._is_kept) and self._is_kept[keys].all():
                return moved(at(self._kept, keys), leaves(inputs)[0].device)
        with torch.no_grad():
            return run(self.model, inputs)

    def _keep_all(self) -> None:
        """Compute and keep the outputs of all examples, unless it is done; the first tell how much memory all need."""
        if self._fits is not None:
            return
        count, kept, is_kept = self.examples.places, None, torch.zeros(self.examples.places, dtype=torch.bool)
        for keys, inputs in self.examples.keyed():
            new = outputs(self.model, inputs)
            if kept is None:
                bytes_each = sum(tensor.nbytes for tensor in leaves(new)) / len(keys)
                if count * bytes_each > KEPT_SHARE * machine.memory_bytes():
                    self._fits = False
                    return
                kept = map_tensors(new, lambda tensor: tensor.new_zeros(count, *tensor.shape[1:]))
            for tensor, computed in zip(leaves(kept), leaves(new), strict=True):
                tensor[keys] = computed
            is_kept[keys] = True
        self._kept, self._is_kept, self._fits = kept, is_kept, True  # at the end: what interrupts starts anew


def warmed(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a share of the highest: a short warm-up, then a cosine to zero."""
    rise = max(1, round(WARM_UP_SHARE * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
