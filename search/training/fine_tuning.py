"""Train a network in place, with or without a teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from objectives.examples import device_of, outputs
from search.study.errors import Diverged, UserError
from search.training.precision import Precision
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from objectives import Examples
    from search.study.spec import Recipe
    from spaces import Recovery

WARM_UP_SHARE = 0.05  # share of the steps over which the learning rate rises (chosen)
MAX_GRADIENT_NORM = 5.0  # larger gradients are clipped; a pruned network starts with a few very large ones (chosen)


def fine_tune(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Examples,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
    progress: Callable[[float], None] = lambda done: None,  # noqa: ARG005
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
        The schedule and the optimizer.
    seed
        Seed of the order of the examples, the augmentation and the dropout.
    progress
        Called after each step with the share of the steps that is done.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    rate = recipe.learning_rate
    assert rate is not None, "a range test sets it"
    count = recipe.steps(len(examples))
    losses: list[Tensor] = []
    steps_per_pass = len(examples) // recipe.batch(len(examples))
    steps = training_steps(
        student, teacher, examples, recovery, recipe, seed, [rate * warmed(step, count) for step in range(count)]
    )
    for step, loss in enumerate(steps, 1):
        losses.append(loss)
        progress(step / count)
        if step % steps_per_pass == 0 or step == count:  # reading every loss would wait for the device
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean):
                raise Diverged(f"the loss became {mean} within {step} of {count} steps; try a lower learning rate")
    student.eval()


def training_steps(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Examples,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
    rates: Sequence[float],
) -> Iterator[Tensor]:
    """Train `student` in place, one step for each learning rate; yield the loss of each step."""
    device = device_of(student)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for dropout
    batch = recipe.batch(len(examples))
    optimizer = recipe.optimizer(
        [p for p in student.parameters() if p.requires_grad], lr=rates[0], weight_decay=recipe.weight_decay
    )
    precision = Precision(device)
    precision.prepare(student.train())
    for rate, chosen in zip(rates, _batches(len(examples), batch, generator), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs = examples.inputs[chosen]
        if recipe.augment is not None:
            inputs = recipe.augment(inputs, generator)
        inputs = precision.laid_out(inputs.to(device))
        teacher_outputs = teacher.outputs_of(inputs, None if recipe.augment else chosen)
        labels = examples.labels[chosen].to(device)
        with precision.forward():
            heads = heads_of(student(inputs), teacher_outputs)
        loss = torch.stack([recovery.loss(precision.full(head), teacher_outputs, labels) for head in heads]).mean()
        precision.step(loss, student, optimizer, MAX_GRADIENT_NORM)
        yield loss.detach()
    precision.finish(student)


def _batches(examples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of each batch, endlessly; every pass has a new order."""
    while True:
        for chosen in torch.randperm(examples, generator=generator).split(batch):
            if len(chosen) == batch:  # BatchNorm statistics of a short batch are poor
                yield chosen


def heads_of(output: object, teacher_outputs: Tensor) -> list[Tensor]:
    """Return the outputs that have the teacher's shape; extra heads, as some networks have in training, learn the same.

    Raises
    ------
    UserError
        If no output has the teacher's shape.
    """
    if isinstance(output, Tensor):
        return [output]
    heads = [tensor for tensor in tensors(output) if tensor.shape == teacher_outputs.shape]
    if not heads:
        raise UserError(
            f"in training mode the network must also return an output of shape {tuple(teacher_outputs.shape)}, but it "
            f"returned {[tuple(tensor.shape) for tensor in tensors(output)]}"
        )
    return heads


class TeacherOutputs:
    """A teacher whose outputs for the training set are computed once.

    Parameters
    ----------
    model
        The teacher in evaluation mode, on the device of the training.
    examples
        The training set.
    """

    def __init__(self, model: nn.Module, examples: Examples) -> None:
        self.model = model
        self.examples = examples
        self._cached: Tensor | None = None
        self._is_cached = torch.zeros(len(examples), dtype=torch.bool)

    def outputs_of(self, inputs: Tensor, chosen: Tensor | None) -> Tensor:
        """Return the outputs (B, classes) for a batch: cached outputs by index, new ones for augmented inputs."""
        if chosen is None:
            with torch.no_grad():
                return self.model(inputs)  # type: ignore[no-any-return]
        missing = chosen[~self._is_cached[chosen]]
        if len(missing):
            computed = outputs(self.model, self.examples.inputs[missing])
            if self._cached is None:
                self._cached = computed.new_zeros(len(self.examples), *computed.shape[1:])
            self._cached[missing] = computed
            self._is_cached[missing] = True
        assert self._cached is not None
        return self._cached[chosen].to(inputs.device)


def warmed(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a share of the highest: a short warm-up, then a cosine to zero."""
    rise = max(1, round(WARM_UP_SHARE * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
