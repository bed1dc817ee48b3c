"""Three ways to score the same adversaries, on defences whose chance of a right answer is known for every image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.judging.scoring import choose_strongest, score
from bench.judging.target import Target, is_correct
from bench.questions.spec import ThreatModel, parse_eps
from benchmarks.scoring import Strength, count_as_library, main, make_adversaries
from tests.attacks.linear import two_classes
from tests.fake_records import cell

N = 4000
TRUTH = torch.zeros(N, dtype=torch.long)


class Chances(nn.Module):
    """Right, which is class 0, with the probability that is the value of the image's first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        wins = torch.rand(len(x)) < x[:, 0, 0, 0]
        return torch.stack([wins, ~wins], 1).float()


class Guarded(nn.Module):
    """Right with probability .9 on the images `x` themselves, and .5 anywhere else; three classes, so that there is a DLR loss."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.known = x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        same = torch.isin(
            flat[:, 0], self.known[:, 0]
        )  # the first pixels are random, and as many as there are images
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
    ("several", "union", "same"), [(2, 0.481, 0.563), (5, 0.346, 0.522), (10, 0.265, 0.497)]
)
def test_candidates_that_are_no_better_than_the_image_are_counted_as_successes_unless_other_draws_score_them(
    several: int, union: float, same: float
) -> None:
    """Spec 1.7, simulated there for 1000 examples: the true accuracy is .6 with any number of candidates."""
    p = chances()
    assert union == pytest.approx(
        math.prod((0.6 + i) / (1 + i) for i in range(several)), abs=0.002
    ), "the mean of p to that power"
    x = pixels(p)
    torch.manual_seed(1)
    stands, kept = count_as_library(Chances(), x, TRUTH, x.expand(several - 1, *x.shape))
    assert float(stands.float().mean()) == pytest.approx(union, abs=0.02)
    assert torch.equal(kept, x)
    asked = cell("pgd", "carso", dataset=f"digits[n={N}]", select=20, draws=64)
    chosen = choose_strongest(asked, Chances(), x.expand(several, *x.shape), TRUTH, 0)
    correct = score(asked, Chances(), chosen.images, TRUTH, 0)
    # common random numbers: candidates that are alike have the same selection draws, and nothing to choose among
    assert float((chosen.selected / 20).mean()) == pytest.approx(0.6, abs=0.015)
    assert float((correct / 64).mean()) == pytest.approx(0.6, abs=0.015)
    twenty = torch.distributions.Binomial(20, p).sample((several,)).amin(0)
    assert float((twenty / 20).mean()) == pytest.approx(same, abs=0.02), (
        "and without them, as the specification has it"
    )


def expected(clean: float, attacked: float) -> tuple[float, float]:
    """What the library counts, and what its images score again, if all are right with these chances before and after either attack."""
    survives = (
        clean * attacked + (1 - clean) * clean
    )  # where the attack's own look at the image is unlucky, it returns the image
    moved = clean * clean * (1 - attacked) * (1 + survives)
    return clean * survives**2, moved * attacked + (1 - moved) * clean


def test_one_number_lies_below_the_truth_and_the_other_above_it_and_the_split_hits_it() -> None:
    counted, again = expected(0.9, 0.5)
    assert (counted, again) == (pytest.approx(0.2624, abs=1e-4), pytest.approx(0.6505, abs=1e-4))
    x, tried = (
        pixels(torch.full((N,), 0.9)),
        pixels(torch.full((N,), 0.5)).expand(2, -1, -1, -1, -1),
    )
    torch.manual_seed(0)
    stands, kept = count_as_library(Chances(), x, TRUTH, tried)
    assert float(stands.float().mean()) == pytest.approx(counted, abs=0.02)
    assert float(is_correct(Chances()(kept), TRUTH).float().mean()) == pytest.approx(
        again, abs=0.02
    )
    asked = cell("pgd", "carso", dataset=f"digits[n={N}]", select=32, draws=64)
    chosen = choose_strongest(asked, Chances(), torch.cat([x[None], tried]), TRUTH, 0)
    correct = score(asked, Chances(), chosen.images, TRUTH, 0)
    assert float((correct / 64).mean()) == pytest.approx(0.5, abs=0.01)


def test_the_library_itself_counts_and_returns_what_the_bookkeeping_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyautoattack import AutoAttack

    torch.manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(3000, 1, 2, 2)
    y, model = torch.zeros(3000, dtype=torch.long), Guarded(x)
    front = AutoAttack(model, norm="Linf", eps=0.05, seed=0, device="cpu", version="rand")
    front.apgd.n_iter, front.apgd.eot_iter = 8, 1
    shown: list[str] = []
    monkeypatch.setattr(front.logger, "debug", shown.append)
    images, _ = front.run_standard_evaluation(x, y, batch_size=3000)
    counted, again = expected(0.9, 0.5)
    told = [line for line in shown if line.startswith("robust accuracy after")]
    assert len(told) == 2
    assert float(told[-1].split(": ")[1].split("%")[0]) / 100 == pytest.approx(counted, abs=0.024)
    torch.manual_seed(1)
    share = torch.stack([is_correct(model(images), y) for _ in range(20)]).float().mean()
    assert float(share) == pytest.approx(again, abs=0.015)


def test_an_attack_that_was_never_right_returns_the_image_itself() -> None:
    problem = two_classes()
    threat = {
        size: ThreatModel("linf", parse_eps(f"{size * float(problem.optimum['linf'][0]):.6f}"))
        for size in (0.5, 2)
    }
    pair = nn.Sequential(
        problem.model, nn.ConstantPad1d((0, 1), -9.0)
    )  # a third class, far away, for the DLR loss
    target = Target(pair, classes=3)
    torch.manual_seed(0)
    returned, candidates = make_adversaries(
        target, problem.x, problem.y, threat[0.5], Strength(10, 1)
    )
    assert torch.equal(returned, problem.x.expand_as(returned))
    assert torch.equal(candidates[[0, 2, 4]], problem.x.expand(3, -1, -1, -1, -1))
    assert (candidates[[1, 3]] != problem.x).any()
    returned, candidates = make_adversaries(
        target, problem.x, problem.y, threat[2], Strength(10, 1)
    )
    assert not is_correct(problem.model(returned.flatten(0, 1)), problem.y.repeat(2)).any()
    assert torch.equal(candidates[[2, 4]], returned)


def test_the_command_prints_a_row_per_defence_and_refuses_one_that_answers_the_same_at_every_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "--n",
        "10",
        "--steps",
        "2",
        "--eot",
        "1",
        "--repeats",
        "3",
        "--select",
        "4",
        "--draws",
        "5",
        "--device",
        "cpu",
    ]
    main([*words, "--defences", "tta,noise"])
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row.split()[0] for row in rows] == ["tta", "noise"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--defences", "at"])
    assert (
        capsys.readouterr().err
        == "benchmarks.scoring: defence 'at' answers the same at every call: there is nothing to compare\n"
    )
