"""Train a purifier around a frozen classifier: reconstruct the clean image from the perturbed one."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from carso.adversary import Adversaries
from carso.batches import batches, check, pixels
from carso.clock import Clock
from carso.devices import Devices
from carso.loss import beta_at, divergence, elbo
from carso.model import CARSO, VAE
from carso.optimiser import PLAIN, Lookahead, learning_rate
from carso.purifier import Purifier
from carso.recipe import Recipe
from carso.representation import shapes, taps
from carso.resume import Checkpoint, Epoch, State


def new_purifier(classifier: nn.Module, image: tuple[int, int, int], recipe: Recipe) -> Purifier:
    """An untrained purifier for the classifier; ValueError for a layer that does not exist, or is too small for the recipe's compressors."""
    found = shapes(classifier, image, recipe.layers)
    return Purifier(recipe.layout(image, found), recipe.layers)


@dataclass(frozen=True, slots=True)
class Validation:
    """`measure` gives (clean, attacked) accuracy of a purifier, after every `every` epochs (0: never) and after the last."""

    measure: Callable[[Purifier], tuple[float, float]]
    every: int = 0

    def due(self, epoch: int, epochs: int) -> bool:
        return epoch + 1 == epochs or bool(self.every and (epoch + 1) % self.every == 0)


def fit(
    purifier: Purifier,
    classifier: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    report: Callable[[Epoch], None] = lambda _: None,
    *,
    validation: Validation | None = None,
    checkpoint: Checkpoint | None = None,
    devices: Devices | None = None,
) -> list[Epoch]:
    """Train in place, and return the losses of every epoch; purifier in evaluation mode at the end, with the slow weights.

    x (N,C,H,W) in [0,1], or packed (carso.batches), y (N,) int64, on the device of both modules. The classifier's parameters are frozen for
    good. No augmentation; the first steps, which RAdam takes unscaled along the summed loss, keep `lr_start` also where an epoch is shorter than
    they. Goes on where `checkpoint` ends, to the weights of an uninterrupted run.

    Randomness: one number of torch's global generator; every epoch, with its validation, has a stream of its own that follows from it.
    ValueError where the data are not finite, or give no batch, or the checkpoint is of another run; FloatingPointError where training diverges;
    OSError where the checkpoint cannot be written.
    """
    check(x)
    devices = devices or Devices(x.device)
    if not batches(len(x), recipe.batch, seed=0, count=devices.count):
        raise ValueError(
            f"{len(x)} training images in batches of {recipe.batch} on {devices.count} device(s) give no batch of 2 images each"
        )
    classifier.requires_grad_(False).eval()
    state = checkpoint.load() if checkpoint and checkpoint.epochs() else None
    seed = int(torch.randint(2**62, ()).item())
    model = devices.wrap(purifier.train())
    run = _Run(
        purifier,
        model,
        classifier,
        x,
        y,
        recipe,
        devices,
        state.seed if state else seed,
        Lookahead(purifier.parameters(), recipe.lr),
    )
    if state:
        run.restore(state)
        state = None  # as large as four purifiers
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        for epoch in range(len(run.history), recipe.epochs):
            done = run.epoch(epoch)
            if validation and validation.due(epoch, recipe.epochs):
                clean, attacked = validation.measure(run.kept())
                done = replace(done, clean_acc=clean, pgd_acc=attacked)
            run.history.append(done)
            if checkpoint:
                run.save(checkpoint)
            report(done)
    run.optimiser.finish()
    purifier.eval()
    return run.history


@dataclass(frozen=True, slots=True)
class _Run:
    """All that changes during training, and what it is made from."""

    purifier: Purifier
    model: nn.Module  # the purifier as the devices call it
    classifier: nn.Module
    x: Tensor
    y: Tensor
    recipe: Recipe
    devices: Devices
    seed: int
    optimiser: Lookahead
    history: list[Epoch] = field(default_factory=list)

    def stream(self, purpose: str, epoch: int, rank: int | None = None) -> int:
        """The seed of what is random in one epoch; of this process alone, unless a rank is given."""
        text = f"{self.seed}/{purpose}/{epoch}/{self.devices.rank if rank is None else rank}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def epoch(self, epoch: int) -> Epoch:
        recipe, devices, optimiser = self.recipe, self.devices, self.optimiser
        started, clock = time.perf_counter(), Clock(self.x.device)
        lr = learning_rate(
            epoch,
            recipe.epochs,
            start=recipe.lr_start,
            base=recipe.lr,
            final=recipe.lr_final,
            warmup=recipe.warmup,
        )
        beta = recipe.beta * beta_at(epoch, recipe.epochs, recipe.lag)
        adversaries = Adversaries.of(recipe)
        sums, images = torch.zeros(2, dtype=torch.float64, device=self.x.device), 0
        torch.manual_seed(self.stream("training", epoch))
        for chosen in batches(
            len(self.x),
            recipe.batch,
            seed=self.stream("order", epoch, 0),
            rank=devices.rank,
            count=devices.count,
        ):
            chosen = chosen.to(self.x.device, non_blocking=True)
            clean, labels = pixels(self.x[chosen]), self.y[chosen]
            with clock, devices.attacking():
                mixed = adversaries.deal(self.classifier, clean, labels)
            with torch.no_grad(), devices.autocast():
                representation = taps(self.classifier, mixed, self.purifier.layers)
            rec, mu, logvar = self.model(mixed, representation)
            # Before the loss, which on a GPU would end the process at a NaN.
            if devices.any(
                ~torch.isfinite(rec.detach().sum() + divergence(mu.detach(), logvar.detach()))
            ):
                raise FloatingPointError(
                    f"training diverged in epoch {epoch}: the loss is not finite; lower lr (now {recipe.lr:g})"
                )
            total, reconstruction, kl = elbo(rec, clean, mu, logvar, beta)
            optimiser.set_lr(recipe.lr_start if optimiser.steps < PLAIN else lr)
            optimiser.zero_grad()
            devices.backward(total)
            optimiser.step()
            sums += torch.stack([reconstruction, kl]).detach()
            images += len(chosen)
        reconstruction, kl = (devices.sum(sums) / devices.sum(sums.new_tensor(images))).tolist()
        return Epoch(
            epoch,
            lr,
            beta,
            reconstruction,
            kl,
            round(time.perf_counter() - started, 3),
            round(clock.seconds(), 3),
        )

    def kept(self) -> Purifier:
        """A copy with the slow weights, as training would leave it here."""
        twin = copy.deepcopy(self.purifier)
        with torch.no_grad():
            for parameter, slow in zip(twin.parameters(), self.optimiser.slow, strict=True):
                parameter.copy_(slow)
        return twin.eval()

    def restore(self, state: State) -> None:
        """ValueError where the tensors are not this run's."""
        weights = {
            name.removeprefix("purifier."): value
            for name, value in state.tensors.items()
            if name.startswith("purifier.")
        }
        try:
            self.purifier.load_state_dict(weights)
            self.optimiser.restore(state.tensors, state.steps)
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"the checkpoint does not fit the purifier: {' '.join(str(error).split())[:200]}"
            ) from None
        self.history.extend(state.history)

    def save(self, checkpoint: Checkpoint) -> None:
        """By the first process; where it cannot, all of them stop."""
        failed: Exception | None = None
        if self.devices.rank == 0:
            weights = {
                f"purifier.{name}": value for name, value in self.purifier.state_dict().items()
            }
            try:
                state = State(
                    {**weights, **self.optimiser.state()},
                    self.optimiser.steps,
                    self.seed,
                    self.history,
                )
                checkpoint.save(state, self.recipe.epochs)
            except (OSError, FloatingPointError) as error:
                failed = error
        if self.devices.any(failed is not None):
            raise failed or OSError("the first process could not write the checkpoint")


def wrap(
    classifier: nn.Module, purifier: Purifier, samples: int = 8, aggregation: str = "peel"
) -> CARSO:
    """The defence that a purifier is for: CARSO, or the unconditional VAE where it has no taps."""
    return (CARSO if purifier.layers else VAE)(classifier, purifier, samples, aggregation)


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
    """(clean, attacked) accuracy of the whole defence, in [0,1]: a quick check, not the bench's number.

    The attack is linf PGD on the margin of the `lse` surrogate, with fresh samples at every step; accuracies are means of `draws` fresh draws.
    """
    right = x.new_zeros(2)
    for xs, ys in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        for i, tried in enumerate((xs, _margin_pgd(defence, xs, ys, eps, steps) if eps else xs)):
            with torch.no_grad():
                right[i] += (defence.draws(tried, draws).argmax(2) == ys[:, None]).sum() / draws
    clean, attacked = (right / len(x)).tolist()
    return clean, attacked


def _margin_pgd(defence: CARSO, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        adv.requires_grad_()
        logits = defence.surrogates["lse"](adv)
        true = logits.gather(1, y[:, None])[:, 0]
        wrong = logits.scatter(1, y[:, None], -math.inf).amax(1)
        (ascent,) = torch.autograd.grad((wrong - true).sum(), adv)
        adv = (adv.detach() + 2.5 * eps / steps * ascent.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return adv
