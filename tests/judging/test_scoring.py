"""Three ways to score the same adversaries, where the chance of a right answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.judging.scoring import choose_strongest, score
from bench.judging.target import Target, is_correct
from bench.questions.eps import parse_eps
from bench.questions.spec import ThreatModel
from benchmarks.scoring import Strength, count_as_library, main, make_adversaries
from tests.attacks.linear import two_classes
from tests.fake_records import cell

N = 4000
TRUTH = torch.zeros(N, dtype=torch.long)


class Chances(nn.Module):
    """Right, which is class 0, with the probability in the first pixel of the image."""

    def forward(self, x: Tensor) -> Tensor:
        wins = torch.rand(len(x)) < x[:, 0, 0, 0]
        return torch.stack([wins, ~wins], 1).float()


class Guarded(nn.Module):
    """Right with probability .9 on the images `x` themselves, and .5 anywhere else.

    There are three classes, so that there is a DLR loss.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.known = x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        # the first pixels are random, and as many as there are images
        same = torch.isin(flat[:, 0], self.known[:, 0])
        wins = torch.rand(len(x)) < torch.where(same, 0.9, 0.5)
        bent = flat.sum(1) - flat.sum(1).detach()  # a gradient, the same everywhere
        return torch.stack(
            [torch.where(wins, 1.0, -1.0) - bent, bent, torch.full_like(bent, -2.0)], 1
        )


def pixels(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def chances() -> Tensor:
    """N draws of Beta(.6,.4), whose mean is .6."""
    torch.manual_seed(0)
    return torch.distributions.Beta(torch.tensor(0.6), torch.tensor(0.4)).sample((N,))


@pytest.mark.parametrize(
    ("m", "union", "same"), [(2, 0.481, 0.563), (5, 0.346, 0.522), (10, 0.265, 0.497)]
)
def test_useless_candidates_count_as_successes_unless_other_draws_score_them(
    m: int, union: float, same: float
) -> None:
    """The true accuracy is .6 with any number `m` of candidates that are the image itself."""
    p = chances()
    assert union == pytest.approx(math.prod((0.6 + i) / (1 + i) for i in range(m)), abs=0.002), (
        "the mean of p to that power"
    )
    x = pixels(p)
    torch.manual_seed(1)
    robust, x_adv = count_as_library(Chances(), x, TRUTH, x.expand(m - 1, *x.shape))
    assert float(robust.float().mean()) == pytest.approx(union, abs=0.02)
    assert torch.equal(x_adv, x)
    asked = cell("pgd", "carso", dataset=f"digits[n={N}]", select=20, draws=64)
    chosen = choose_strongest(asked, Chances(), x.expand(m, *x.shape), TRUTH, 0)
    correct = score(asked, Chances(), chosen.images, TRUTH, 0)
    # common random numbers: candidates that are alike have the same selection draws
    assert float((chosen.selected / 20).mean()) == pytest.approx(0.6, abs=0.015)
    assert float((correct / 64).mean()) == pytest.approx(0.6, abs=0.015)
    twenty = torch.distributions.Binomial(20, p).sample((m,)).amin(0)
    assert float((twenty / 20).mean()) == pytest.approx(same, abs=0.02), (
        "and without them, as the specification has it"
    )


def expected(clean: float, attacked: float) -> tuple[float, float]:
    """What the library counts, and what its images score again.

    All are right with the chance `clean` before, and `attacked` after either attack.
    """
    # where the attack's own look at the image is unlucky, it returns the image
    survives = clean * attacked + (1 - clean) * clean
    moved = clean * clean * (1 - attacked) * (1 + survives)
    return clean * survives**2, moved * attacked + (1 - moved) * clean


def test_one_count_lies_below_the_truth_one_above_and_the_split_hits_it() -> None:
    counted, again = expected(0.9, 0.5)
    assert counted == pytest.approx(0.2624, abs=1e-4)
    assert again == pytest.approx(0.6505, abs=1e-4)
    x = pixels(torch.full((N,), 0.9))
    returned = pixels(torch.full((N,), 0.5)).expand(2, -1, -1, -1, -1)
    torch.manual_seed(0)
    robust, x_adv = count_as_library(Chances(), x, TRUTH, returned)
    assert float(robust.float().mean()) == pytest.approx(counted, abs=0.02)
    right = is_correct(Chances()(x_adv), TRUTH)
    assert float(right.float().mean()) == pytest.approx(again, abs=0.02)
    asked = cell("pgd", "carso", dataset=f"digits[n={N}]", select=32, draws=64)
    chosen = choose_strongest(asked, Chances(), torch.cat([x[None], returned]), TRUTH, 0)
    correct = score(asked, Chances(), chosen.images, TRUTH, 0)
    assert float((correct / 64).mean()) == pytest.approx(0.5, abs=0.01)


def test_the_library_itself_counts_and_returns_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyautoattack import AutoAttack

    torch.manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(3000, 1, 2, 2)
    y = torch.zeros(3000, dtype=torch.long)
    model = Guarded(x)
    autoattack = AutoAttack(model, norm="Linf", eps=0.05, seed=0, device="cpu", version="rand")
    autoattack.apgd.n_iter = 8
    autoattack.apgd.eot_iter = 1
    log: list[str] = []
    monkeypatch.setattr(autoattack.logger, "debug", log.append)
    x_adv, _ = autoattack.run_standard_evaluation(x, y, batch_size=3000)
    counted, again = expected(0.9, 0.5)
    counts = [line for line in log if line.startswith("robust accuracy after")]
    assert len(counts) == 2
    percent = float(counts[-1].split(": ")[1].split("%")[0])
    assert percent / 100 == pytest.approx(counted, abs=0.024)
    torch.manual_seed(1)
    share = torch.stack([is_correct(model(x_adv), y) for _ in range(20)]).float().mean()
    assert float(share) == pytest.approx(again, abs=0.015)


def test_an_attack_that_was_never_right_returns_the_image_itself() -> None:
    problem = two_classes()
    optimum = float(problem.optimum["linf"][0])
    half = ThreatModel("linf", parse_eps(f"{0.5 * optimum:.6f}"))
    double = ThreatModel("linf", parse_eps(f"{2 * optimum:.6f}"))
    # a third class, far away, for the DLR loss
    model = nn.Sequential(problem.model, nn.ConstantPad1d((0, 1), -9.0))
    target = Target(model, classes=3)
    torch.manual_seed(0)
    strength = Strength(10, 1)
    returned, candidates = make_adversaries(target, problem.x, problem.y, half, strength)
    assert torch.equal(returned, problem.x.expand_as(returned))
    assert torch.equal(candidates[[0, 2, 4]], problem.x.expand(3, -1, -1, -1, -1))
    assert (candidates[[1, 3]] != problem.x).any()
    returned, candidates = make_adversaries(target, problem.x, problem.y, double, strength)
    assert not is_correct(problem.model(returned.flatten(0, 1)), problem.y.repeat(2)).any()
    assert torch.equal(candidates[[2, 4]], returned)


def test_the_command_prints_a_row_per_defence_and_refuses_deterministic_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--n 10 --steps 2 --eot 1 --repeats 3 --select 4 --draws 5 --device cpu"
    words = flags.split()
    main([*words, "--defences", "tta,noise"])
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row.split()[0] for row in rows] == ["tta", "noise"]
    assert main([*words, "--defences", "at"]) == 2
    assert capsys.readouterr().err == (
        "benchmarks.scoring: defence 'at' answers the same at every call: "
        "there is nothing to compare\n"
    )
