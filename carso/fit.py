"""Train a purifier around a frozen classifier: reconstruct the clean image from the perturbed."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from carso.adversary import Adversaries, pgd, summed_margin
from carso.batches import batch_indices, check_images, unpack_images
from carso.clock import Clock
from carso.devices import Devices
from carso.loss import beta_at, elbo, kl_divergence
from carso.model import CARSO, VAE
from carso.optimiser import UNSCALED_STEPS, Lookahead, learning_rate
from carso.purifier import Purifier
from carso.recipe import Recipe
from carso.representation import tap_shapes, taps
from carso.resume import Checkpoint, Epoch, State


def new_purifier(classifier: nn.Module, image: tuple[int, int, int], recipe: Recipe) -> Purifier:
    """An untrained purifier for the classifier.

    BadInput for a layer that does not exist, or is too small for the recipe's compressors.
    """
    shapes = tap_shapes(classifier, image, recipe.layers)
    return Purifier(recipe.layout(image, shapes), recipe.layers)


@dataclass(frozen=True, slots=True)
class Validation:
    """`measure` gives the (clean, attacked) accuracy of a purifier.

    It is called after every `every` epochs (0: never) and after the last.
    """

    measure: Callable[[Purifier], tuple[float, float]]
    every: int = 0

    def is_due(self, epoch: int, epochs: int) -> bool:
        return epoch + 1 == epochs or bool(self.every and (epoch + 1) % self.every == 0)


def ignore_epoch(_: Epoch) -> None:
    """The report of a training that nobody watches."""


def fit_purifier(
    purifier: Purifier,
    classifier: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    report: Callable[[Epoch], None] = ignore_epoch,
    *,
    validation: Validation | None = None,
    checkpoint: Checkpoint | None = None,
    devices: Devices | None = None,
) -> list[Epoch]:
    """Train in place, and return the losses of every epoch.

    At the end the purifier is in evaluation mode, with the slow weights. x (N,C,H,W) in [0,1], or
    packed (carso.batches), and y (N,) int64 lie on the device of both modules. The classifier's
    parameters are frozen for good. There is no augmentation. The first steps, which RAdam takes
    unscaled along the summed loss, keep `lr_start` also where an epoch is shorter than they.
    Training goes on where `checkpoint` ends, to the weights of an uninterrupted run.

    Randomness is one number of torch's global generator. Every epoch, with its validation, has a
    stream of its own that follows from it.

    BadInput where the data are not finite, or give no batch, or the checkpoint is of another run;
    FloatingPointError where training diverges; OSError where the checkpoint cannot be written.
    """
    check_images(x)
    devices = devices or Devices(x.device)
    if not batch_indices(len(x), recipe.batch, seed=0, count=devices.count):
        raise BadInput(
            f"{len(x)} training images in batches of {recipe.batch} "
            f"on {devices.count} device(s) give no batch of 2 images each"
        )
    classifier.requires_grad_(False).eval()
    state = checkpoint.load() if checkpoint and checkpoint.count_epochs() else None
    seed = int(torch.randint(2**62, ()).item())
    run = Run(
        purifier,
        devices.wrap(purifier.train()),
        classifier,
        x,
        y,
        recipe,
        devices=devices,
        seed=state.seed if state else seed,
        optimiser=Lookahead(purifier.parameters(), recipe.lr),
    )
    if state:
        run.restore(state)
        state = None  # as large as four purifiers
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        for index in range(len(run.history), recipe.epochs):
            epoch = run.train_epoch(index)
            if validation and validation.is_due(index, recipe.epochs):
                clean, attacked = validation.measure(run.copy_with_slow_weights())
                epoch = replace(epoch, clean_acc=clean, pgd_acc=attacked)
            run.history.append(epoch)
            if checkpoint:
                run.save(checkpoint)
            report(epoch)
    run.optimiser.load_slow_weights()
    purifier.eval()
    return run.history


@dataclass(frozen=True, slots=True)
class Run:
    """All that changes during training, and what it is made from."""

    purifier: Purifier
    model: nn.Module  # the purifier as the devices call it
    classifier: nn.Module
    x: Tensor  # (N,C,H,W)
    y: Tensor  # (N,)
    recipe: Recipe
    devices: Devices
    seed: int
    optimiser: Lookahead
    history: list[Epoch] = field(default_factory=list)

    def seed_of(self, purpose: str, epoch: int, rank: int | None = None) -> int:
        """The seed of what is random in one epoch; of this process, unless a rank is given."""
        rank = self.devices.rank if rank is None else rank
        text = f"{self.seed}/{purpose}/{epoch}/{rank}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def train_epoch(self, epoch: int) -> Epoch:
        started = time.perf_counter()
        clock = Clock(self.x.device)
        adversaries = Adversaries.from_recipe(self.recipe)
        lr = self.learning_rate(epoch)
        beta = self.recipe.beta * beta_at(epoch, self.recipe.epochs, self.recipe.lag)
        sums = torch.zeros(2, dtype=torch.float64, device=self.x.device)
        images = 0
        torch.manual_seed(self.seed_of("training", epoch))
        for indices in self.batches(epoch):
            clean = unpack_images(self.x[indices])  # (B,C,H,W)
            with clock, self.devices.adversary_precision():
                attacked = adversaries.attack_batch(self.classifier, clean, self.y[indices])
            sums += self.train_step(epoch, clean, attacked, lr, beta)
            images += len(indices)
        total_images = self.devices.sum(sums.new_tensor(images))
        reconstruction, kl = (self.devices.sum(sums) / total_images).tolist()
        return Epoch(
            epoch,
            lr,
            beta,
            reconstruction,
            kl,
            seconds=round(time.perf_counter() - started, 3),
            adversaries=round(clock.seconds(), 3),
        )

    def batches(self, epoch: int) -> list[Tensor]:
        """The indices (B,) of every step of this process, on the device of the images."""
        batches = batch_indices(
            len(self.x),
            self.recipe.batch,
            seed=self.seed_of("order", epoch, 0),
            rank=self.devices.rank,
            count=self.devices.count,
        )
        return [indices.to(self.x.device, non_blocking=True) for indices in batches]

    def learning_rate(self, epoch: int) -> float:
        recipe = self.recipe
        return learning_rate(
            epoch,
            recipe.epochs,
            start=recipe.lr_start,
            base=recipe.lr,
            final=recipe.lr_final,
            warmup=recipe.warmup,
        )

    def train_step(
        self, epoch: int, clean: Tensor, attacked: Tensor, lr: float, beta: float
    ) -> Tensor:
        """One step of the optimiser; the sums (2,) of reconstruction and KL over the batch."""
        with torch.no_grad(), self.devices.autocast():
            representation = taps(self.classifier, attacked, self.purifier.layers)
        x_rec, mu, logvar = self.model(attacked, representation)
        # Before the loss, which on a GPU would end the process at a NaN.
        probe = x_rec.detach().sum() + kl_divergence(mu.detach(), logvar.detach())
        if self.devices.any(~torch.isfinite(probe)):
            raise FloatingPointError(
                f"training diverged in epoch {epoch}: the loss is not finite; "
                f"lower lr (now {self.recipe.lr:g})"
            )
        total, reconstruction, kl = elbo(x_rec, clean, mu, logvar, beta)
        unscaled = self.optimiser.steps < UNSCALED_STEPS
        self.optimiser.set_lr(self.recipe.lr_start if unscaled else lr)
        self.optimiser.zero_grad()
        self.devices.backward(total)
        self.optimiser.step()
        return torch.stack([reconstruction, kl]).detach()

    def copy_with_slow_weights(self) -> Purifier:
        """A copy of the purifier as training would leave it here."""
        twin = copy.deepcopy(self.purifier)
        with torch.no_grad():
            for parameter, slow in zip(twin.parameters(), self.optimiser.slow, strict=True):
                parameter.copy_(slow)
        return twin.eval()

    def restore(self, state: State) -> None:
        """Go on from the state. BadInput where its tensors are not this run's."""
        prefix = "purifier."
        weights = {
            name.removeprefix(prefix): value
            for name, value in state.tensors.items()
            if name.startswith(prefix)
        }
        try:
            self.purifier.load_state_dict(weights)
            self.optimiser.restore(state.tensors, state.steps)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"the checkpoint does not fit the purifier: {reason}") from None
        self.history.extend(state.history)

    def save(self, checkpoint: Checkpoint) -> None:
        """Written by the first process. Where that fails, all processes stop."""
        failure: Exception | None = None
        if self.devices.rank == 0:
            tensors = {f"purifier.{k}": v for k, v in self.purifier.state_dict().items()}
            tensors |= self.optimiser.state()
            state = State(tensors, self.optimiser.steps, self.seed, self.history)
            try:
                checkpoint.save(state, self.recipe.epochs)
            except (OSError, FloatingPointError) as error:
                failure = error
        if self.devices.any(failure is not None):
            raise failure or OSError("the first process could not write the checkpoint")


def wrap(
    classifier: nn.Module, purifier: Purifier, samples: int = 8, aggregation: str = "peel"
) -> CARSO:
    """The defence that a purifier is for: CARSO, or the unconditional VAE where it has no taps."""
    defence = CARSO if purifier.layers else VAE
    return defence(classifier, purifier, samples, aggregation)


def validate(
    defence: CARSO,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int = 20,
    draws: int = 4,
    batch: int = 256,
) -> tuple[float, float]:
    """(clean, attacked) accuracy of the whole defence, in [0,1]: a quick check.

    It is not the bench's number. The attack is linf PGD on the margin of the `lse` surrogate, with
    fresh samples at every step. Accuracies are means of `draws` fresh draws.
    """
    right = x.new_zeros(2)
    for x_batch, y_batch in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        x_adv = attack_surrogate(defence, x_batch, y_batch, eps, steps)
        for i, images in enumerate((x_batch, x_adv)):
            with torch.no_grad():
                answers = defence.draws(images, draws).argmax(2)  # (B,draws)
            right[i] += (answers == y_batch[:, None]).sum() / draws
    clean, attacked = (right / len(x)).tolist()
    return clean, attacked


def attack_surrogate(defence: CARSO, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The images after linf PGD on the margin of `lse`; unchanged at eps 0."""
    if not eps:
        return x
    box = x.new_full((len(x), 1, 1, 1), eps)
    model = defence.surrogates["lse"]
    return pgd(model, x, y, box, steps=steps, step=2.5 * eps / steps, loss=summed_margin)
