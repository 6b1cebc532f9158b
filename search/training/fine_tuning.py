"""Train a network, alone or after a teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from objectives.examples import device_of, outputs
from search.study.errors import Diverged, UserError
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from objectives import Examples
    from search.study.spec import Recipe
    from spaces import Recovery

WARM_UP = 0.05  # share of the steps over which the learning rate rises
LARGEST_GRADIENT = 5.0  # norm; a cut network starts with a few very large ones


def fine_tune(
    student: nn.Module,
    teacher: TeacherOutputs,
    examples: Examples,
    recovery: Recovery,
    recipe: Recipe,
    seed: int,
    progress: Callable[[float], None] = lambda done: None,  # noqa: ARG005
) -> None:
    """Train `student` in place by the recovery's loss, on the device where it lies.

    Parameters
    ----------
    student
        The network; left in evaluation mode.
    teacher
        Whose outputs the loss may use.
    examples
        The training set.
    recovery
        The loss.
    recipe
        The schedule.
    seed
        Of the order of the examples, the augmentation and the dropout.
    progress
        Called after each step with the share of the steps done.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    rate = recipe.learning_rate
    assert rate is not None, "a range test comes before"
    count = recipe.steps(len(examples))
    losses: list[Tensor] = []
    a_pass = len(examples) // recipe.batch(len(examples))
    each = training_steps(
        student, teacher, examples, recovery, recipe, seed, [rate * warmed(step, count) for step in range(count)]
    )
    for step, loss in enumerate(each, 1):
        losses.append(loss)
        progress(step / count)
        if step % a_pass == 0 or step == count:  # looking at each would wait for the device
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean):
                raise Diverged(f"the loss became {mean} within {step} of {count} steps; a lower learning rate may help")
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
    """Train in place, a step for each learning rate; yield the loss of each."""
    device = device_of(student)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    batch = recipe.batch(len(examples))
    optimizer = recipe.optimizer(
        [p for p in student.parameters() if p.requires_grad], lr=rates[0], weight_decay=recipe.weight_decay
    )
    # In the channels-last layout, the backward pass of a strided 1x1 convolution on fewer than 8 channels (16 with
    # AVX-512) writes beyond its memory (oneDNN issue 6035), and pruned networks have such: never train in it.
    student.to(memory_format=torch.contiguous_format).train()
    for rate, chosen in zip(rates, _batches(len(examples), batch, generator), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs = examples.inputs[chosen]
        if recipe.augment is not None:
            inputs = recipe.augment(inputs, generator)
        inputs = inputs.to(device).contiguous()
        wanted = teacher.outputs_of(inputs, None if recipe.augment else chosen)
        labels = examples.labels[chosen].to(device)
        each = [recovery.loss(head, wanted, labels) for head in _heads(student(inputs), wanted)]
        loss = torch.stack(each).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        yield loss.detach()


def _batches(examples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the examples of one step after another, without end: every pass in a new order."""
    while True:
        for chosen in torch.randperm(examples, generator=generator).split(batch):
            if len(chosen) == batch:  # a short batch has poor statistics
                yield chosen


def _heads(answer: object, wanted: Tensor) -> list[Tensor]:
    """Return the outputs that are of the teacher's shape: the heads that some networks have in training learn alike.

    Raises
    ------
    UserError
        If there is none.
    """
    if isinstance(answer, Tensor):
        return [answer]
    found = [output for output in tensors(answer) if output.shape == wanted.shape]
    if not found:
        raise UserError(
            f"in training too the network must return an output of shape {tuple(wanted.shape)}, but got "
            f"{[tuple(output.shape) for output in tensors(answer)]}"
        )
    return found


class TeacherOutputs:
    """The network that was given, with its answers to the training set computed once.

    Parameters
    ----------
    model
        In evaluation mode, on the device that is trained on.
    examples
        The training set.
    """

    def __init__(self, model: nn.Module, examples: Examples) -> None:
        self.model = model
        self.examples = examples
        self._answers: Tensor | None = None
        self._known = torch.zeros(len(examples), dtype=torch.bool)

    def outputs_of(self, inputs: Tensor, chosen: Tensor | None) -> Tensor:
        """Return the outputs (B, classes) for a batch: remembered ones by index, fresh ones for augmented inputs."""
        if chosen is None:
            with torch.no_grad():
                return self.model(inputs)  # type: ignore[no-any-return]
        missing = chosen[~self._known[chosen]]
        if len(missing):
            found = outputs(self.model, self.examples.inputs[missing])
            if self._answers is None:
                self._answers = found.new_zeros(len(self.examples), *found.shape[1:])
            self._answers[missing] = found
            self._known[missing] = True
        assert self._answers is not None
        return self._answers[chosen].to(inputs.device)


def warmed(step: int, steps: int) -> float:
    """Return the share of the highest rate at a step: a short rise, then a cosine to zero."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
