"""What may go wrong in a run without a sign: each said once, in a line that names step and number, while it trains.

Nothing here changes a weight or waits for the device within a step: sampled steps leave counts on the device, which are
read with the losses and at an epoch's end.

B batch, C classes, D features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from distillery.accelerator import wide
from distillery.distill.step import Outputs
from distillery.distill.student import Learner
from distillery.models.pretrained.load import classifier_modules
from distillery.models.taps.recording import as_embedding
from distillery.training.checkpoint import TrainState
from distillery.training.initial import is_chance

# A term that keeps one value for so many steps, to so many digits, learns from nothing.
STEPS_AT_ONE_VALUE = 20
ONE_VALUE = 1e-6
# A term with less of the gradient has no say. It is looked at in the first of these steps and then every so many.
LEAST_SHARE = 1e-4
FIRST_SHARES, STEPS_BETWEEN_SHARES = 20, 1000
# Of an epoch's steps, so many are sampled for what is counted over images, until it is so many images.
SAMPLED_STEPS = 20
SAMPLED_IMAGES = 100
# In good networks, too, a few channels die of large rates.
MOST_DEAD = 0.25
# As long as the loader waits before it says so.
LONG_WAIT_SECONDS = 60.0


class Alarms:
    """Watches a run; built when its moving average is, for copies of the student are not to be watched.

    Args:
        name: the run's, for its lines.
        fabric: all processes call alike, and find the same.
        learner: the student and its objective, unwrapped.
        teachers: the networks of those that answer live.
        classes: of the data set.
        steps: of an epoch.
        train_state: what was said is kept there, for run.json and for a run that goes on.
        say: shows a line.
        knows_labels: whether the teacher may be expected to.
        rehearsed: in a rehearsal, the key of the objective, ``FILE: EXPERIMENT.runs.RUN.objective``; else None.
    """

    def __init__(
        self,
        name: str,
        fabric: Fabric,
        learner: Learner,
        teachers: Sequence[nn.Module],
        classes: int,
        steps: int,
        train_state: TrainState,
        say: Callable[[str], None],
        knows_labels: bool = True,
        rehearsed: str | None = None,
    ) -> None:
        self.rehearsed = rehearsed
        self.name, self.fabric, self.train_state, self.say = name, fabric, train_state, say
        self.student, self.objective, self.classes, self.steps = learner.student, learner.objective, classes, steps
        self.teacher = None if not teachers else teachers[0] if len(teachers) == 1 else nn.ModuleList(teachers)
        self.judged = self.teacher is not None and knows_labels
        self.fingerprint = self._fingerprint()
        self.wait = 0.0  # the longest since the last look
        self.same: dict[str, tuple[float, int]] = {}  # by term: a value, and for how many steps it has been that
        self.sampled, self.step = False, 0
        # Of sampled images, since they were last enough to be judged by.
        self.seen_images = self.judged_images = 0
        self.agreeing: Tensor | int = 0
        self.alive_D: Tensor | None = None
        known = classifier_modules(learner.student)
        layers = [module for name, module in learner.student.named_modules() if name in known]
        for layer in layers[-1:]:
            layer.register_forward_pre_hook(self._take_features)

    # --- within a step ----------------------------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """Choose what is looked at in a step of the epoch."""
        self.step = step
        done = self.train_state.epoch * self.steps + step
        self.sampled = step % max(self.steps // SAMPLED_STEPS, 1) == 0
        if len(self.objective.weights) > 1 and done % STEPS_BETWEEN_SHARES == FIRST_SHARES - 1:
            # Only now, for a hook makes all calls of a module longer.
            self.share_hook = self.objective.register_forward_hook(self._take_shares)

    def waited(self, seconds: float) -> None:
        """Note how long a step's data were waited for."""
        self.wait = max(self.wait, seconds)

    def heard(self, teacher: Outputs | None, target: Tensor, labelled_L: Tensor | None) -> None:
        """Count how often the teacher gives the label, over a micro-batch.

        Args:
            teacher: what it gave.
            target: class indices (B,) or soft targets (B, C).
            labelled_L: the rows whose labels are known; None for all.
        """
        if self.sampled and self.judged and teacher is not None and teacher.logits_BC.shape[1] == self.classes:
            hard_B = target if target.ndim == 1 else target.argmax(dim=1)
            right_B = teacher.logits_BC.argmax(dim=1) == hard_B
            right_B = right_B if labelled_L is None else right_B[labelled_L]
            self.judged_images += len(right_B)
            self.agreeing = self.agreeing + right_B.sum()

    def end_step(self) -> None:
        """Look at nothing until the next step begins; after a run's first, at what of its terms has no gradient."""
        self.sampled = False
        if self.train_state.epoch == 0 and self.step == 0:
            self._look_for_gradients()

    def _look_for_gradients(self) -> None:
        for name, term in self.objective.each():
            trained = [(own, value) for own, value in term.named_parameters() if value.requires_grad]
            still = [own for own, value in trained if value.grad is None]
            if still:
                self._raise(
                    "no_gradient",
                    name,
                    self.step,
                    still[0],
                    f"the term {name} leaves {len(still)} of its {len(trained)} parameters without a gradient, "
                    f"{still[0]} for instance; they stay as they began: look at what its forward uses",
                )

    def _take_features(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.sampled or not args or not isinstance(args[0], Tensor):
            return
        features_BD = as_embedding(args[0].detach())
        self.seen_images += len(features_BD)
        alive_D = (features_BD != 0).any(dim=0)
        self.alive_D = alive_D if self.alive_D is None else self.alive_D | alive_D

    # A compiled network calls it as it is: what it looks at changes from step to step.
    _take_features._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _take_shares(self, module: nn.Module, args: Any, values: dict[str, Tensor]) -> None:  # noqa: ANN401
        """Look at the gradient of each term, in a step's first micro-batch.

        This is called before DDP and Fabric see the values, for these want no gradients but those of the step.
        """
        self.share_hook.remove()
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        epoch = self.train_state.epoch
        weights = {name: weight(epoch) for name, weight in self.objective.weights.items()}
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        squares = []
        for name, weight in weights.items():
            value = weight * values[name]
            value = value if scaler is None else scaler.scale(value)
            gradients = [] if not value.requires_grad else _gradients(value, parameters)
            norms = torch._foreach_norm(gradients) if gradients else [value.new_zeros(())]
            squares.append(torch.stack([wide(norm).square() for norm in norms]).sum())
        norms_T = self._summed(torch.stack(squares)).sqrt()
        shares_T = (norms_T / norms_T.sum()).tolist()
        for (name, weight), share in zip(weights.items(), shares_T, strict=True):
            # Where gradients overflow, as in the first steps of float16, no share is less.
            if weight and share < LEAST_SHARE:
                self._raise(
                    "gradient_share",
                    name,
                    self.step,
                    share,
                    f"the term {name} has {100 * share:.2g} % of the student's gradient, less than "
                    f"{100 * LEAST_SHARE:g} %; look at its weight (now {weight:g}) and at what scales it",
                )

    # --- between steps ----------------------------------------------------------------------------------------------

    def look(self, steps: Sequence[int], terms: Mapping[str, Sequence[float]], wait: float) -> None:
        """Look at the steps since the last look: their terms' values, and the longest wait for data in any process."""
        self.wait = 0.0
        if wait >= LONG_WAIT_SECONDS:
            self._raise(
                "data_wait",
                None,
                steps[-1],
                wait,
                f"a step waited {wait:.0f} s for its images; look at their disk, at other users of this machine, and "
                "at --workers",
            )
        for name, values in terms.items():
            # A rehearsal has no twenty steps, and its networks no reason to agree to the last bit.
            if self.rehearsed is not None and not any(values):
                self._raise(
                    "dead_term",
                    name,
                    steps[-1],
                    0.0,
                    f"{self.rehearsed}.{name}: 0 for all images of a rehearsal, so it would teach nothing; look at its "
                    "options, or leave it out",
                )
            for step, value in zip(steps, values, strict=True):
                before, count = self.same.get(name, (value, 0))
                same = abs(value - before) <= ONE_VALUE * abs(before)
                self.same[name] = (before, count + 1) if same else (value, 1)
                if self.same[name][1] == STEPS_AT_ONE_VALUE:
                    self._raise(
                        "constant_term",
                        name,
                        step,
                        value,
                        f"the term {name} has been {value:g} for {STEPS_AT_ONE_VALUE} steps; look at its options and "
                        "at what it is shown: nothing is learnt from a constant",
                    )

    def close_epoch(self) -> None:
        """Look at what the epoch's sampled steps have left, and at the teacher."""
        step = self.steps - 1
        for name in self._moved():
            self._raise(
                "teacher_moved",
                None,
                step,
                name,
                f"{name} of the frozen teacher has changed since this session began; look for a term that writes into "
                "the teacher's outputs or layers",
            )
        counts = torch.stack([torch.as_tensor(count, device=self.fabric.device) for count in self._counts()])
        agreeing, judged, seen = self._summed(wide(counts)).tolist()
        if judged >= SAMPLED_IMAGES:
            self._judge_teacher(step, int(agreeing), int(judged))
        if seen >= SAMPLED_IMAGES:
            self._count_dead(step, int(seen))

    def _judge_teacher(self, step: int, agreeing: int, judged: int) -> None:
        self.agreeing, self.judged_images = 0, 0
        if is_chance(agreeing, judged, 1 / self.classes):
            self._raise(
                "teacher_at_chance",
                None,
                step,
                agreeing / judged,
                f"the teacher gives the right class to {agreeing} of {judged} training images "
                f"({100 * agreeing / judged:.2f} %), no more than guessing one of {self.classes} classes may; look at "
                "augment, mix, preprocess, and the order of classes",
            )

    def _count_dead(self, step: int, seen: int) -> None:
        assert self.alive_D is not None
        alive_D = self._summed(wide(self.alive_D)) > 0
        self.alive_D, self.seen_images = None, 0
        dead, features = int((~alive_D).sum()), len(alive_D)
        if dead > MOST_DEAD * features:
            self._raise(
                "dead_channels",
                None,
                step,
                dead / features,
                f"{dead} of the {features} channels that enter the student's last layer were 0 for all of "
                f"{seen} images; look at optimizer.lr, weight_decay, and the weights it began with",
            )

    def _summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.fabric.world_size == 1:
            return tensor
        total = self.fabric.all_reduce(tensor, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _counts(self) -> tuple[Tensor | int, int, int]:
        return self.agreeing, self.judged_images, self.seen_images

    def _fingerprint(self) -> Tensor:
        sums = [_bits(value).sum(dtype=torch.long) for _, value in self._teacher_state()]
        return torch.stack(sums) if sums else torch.zeros(0)

    def _moved(self) -> list[str]:
        """The names of the teacher's parameters and statistics whose bits are not what they were; the first of them."""
        changed = (self._fingerprint() != self.fingerprint).tolist()
        names = (name for name, _ in self._teacher_state())
        return [name for name, moved in zip(names, changed, strict=True) if moved][:1]

    def _teacher_state(self) -> Iterator[tuple[str, Tensor]]:
        state = {} if self.teacher is None else self.teacher.state_dict()
        # Batch norms that use batch statistics count batches, and read the count nowhere.
        return ((name, value) for name, value in state.items() if not name.endswith("num_batches_tracked"))

    def _raise(self, alarm: str, term: str | None, step: int, value: float | str, what: str) -> None:
        """Say an alarm and keep it, once for each kind and term in a run."""
        alarms = self.train_state.alarms
        if any((said["alarm"], said["term"]) == (alarm, term) for said in alarms):
            return
        epoch = self.train_state.epoch + 1
        alarms.append({"alarm": alarm, "term": term, "epoch": epoch, "step": step + 1, "value": value, "line": what})
        self.say(f"{self.name}: warning: epoch {epoch}, step {step + 1}: {what}")


def _gradients(value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Those of the parameters that a value depends on; the step's own backward pass finds all as ever."""
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def _bits(value: Tensor) -> Tensor:
    """A tensor's bits as whole numbers, whose sum no single change leaves as it was."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.detach().view(kinds[value.element_size()])
