"""Every code of a flag once: what it asks, when it is raised, and its thresholds. No torch.

P: probes of a live defence. D: gradients and attacks. V: proposals. W: the worst case.
E: the environment. G: published figures. A: required attacks. Codes of the checks stand with the
checks, in bench/checks/.
"""

from __future__ import annotations

from bench.checks.gradient_quality import NOISE
from bench.questions.facts import Code
from bench.questions.registry import checks

# Probes.
P2_SAME_COSINE = 0.999  # from which on two gradients are one
P3_CHANCE = 1e-4  # how often an honest stochastic defence may be called dependent on its batch
P3_TOLERANCE = 1e-3  # of a logit: less is rounding, which differs with the size of a batch
P7_TOLERANCE = 1e-5  # AutoAttack's, of the range [0,1] and of the sum 1
P8_GAP = 16.6  # 24 ln 2: the softmax of this gap rounds to 1 in float32
P8_RANGE = 1e4  # of the logits of one image
P8_SHARE = 0.1  # of the images
P12_FEW = 0.1  # distinct values of a logit, relative to the number of outputs: 100 in 1000
P12_TIED = 0.01  # of the outputs, whose two largest logits are the same
P13_NUDGE = 1e-4  # a change of every pixel
P13_SHARE = 0.5  # of the images, whose answer the nudge leaves as it is to the last bit
P15_DIFFER = 0.01  # answers that are others in float64
P15_COSINE = 0.9  # the least of the gradients, between the two precisions
D1_SHARE = 0.1  # gradients that are exactly zero
D2_SHARE = 0.01  # gradients that are NaN or infinite
D12_ERROR = 0.5  # of the gradient, from differences
D12_FLAT = 0.1  # differences that are exactly zero

# Audits.
STANDARD_ERRORS = 2  # of a paired difference, beyond which it is no chance
P1_SHARE = 0.01  # answers that differ when the same image is judged twice
BEATEN_SOFT = 0.002  # of the examples, broken by a weaker attack: AutoAttack's margin for Square
BEATEN_HARD = 0.01
D3_SOFT = 0.01  # of the examples, that may stand at an eps that is no bound
D3_HARD = 0.05
D4_FALL = 0.05  # of the robust accuracy, while eps grows fourfold
D4_STANDS = 0.2  # the robust accuracy above which that is asked
EFFORT_SOFT = 0.005  # robust accuracy that twice the effort may take
EFFORT_HARD = 0.02
D10_SHARE = 0.05  # of the standing examples, that no gradient attack moved
D16_GAIN = 0.005  # robust accuracy that another scale of the logits may take
D18_SHORT = 0.05  # of the plain classifier's examples: the row's attacks leave them, others do not
V1_SHARE = 0.001  # of the examples, whose proposals were not finite
V8_LOSS = 0.02  # robust accuracy that images in 8 bits may win back
W2_GAP = 0.05  # between the draws that chose the attack and fresh ones
G3_GAP = 0.01  # from the published robust accuracy
G3_EXAMPLES = 1000  # below which chance alone goes that far

CODES = (
    Code(
        "P1",
        "is a defence declared deterministic really so",
        hard=f"two calls differ; or from {P1_SHARE:.0%} of the answers on when judged twice",
        soft="declared random, and calls agree; or fewer answers differ when judged twice",
        looks="probe, audit",
    ),
    Code(
        "P2",
        "two gradients at the same image must be the same where two answers are",
        hard=f"their cosine is below {P2_SAME_COSINE} on any image",
        looks="probe",
    ),
    Code(
        "P3",
        "the answer to an image must not depend on the other images of its batch",
        hard=f"alone, in another order or among noise a logit moves by over {P3_TOLERANCE:g}; of "
        f"a stochastic defence the margins do (Welch's test, p below {P3_CHANCE:g})",
        looks="probe",
    ),
    Code(
        "P4",
        "layers that behave as in training, where dropout or batch statistics change the answer",
        hard="any",
        looks="probe",
    ),
    Code(
        "P5",
        "a prediction must change neither the defence nor the images it is given",
        hard="it changes the defence",
        soft="it changes the images, which are copies",
        looks="probe",
    ),
    Code(
        "P6",
        "logits must be finite on every legal image",
        hard="NaN; infinities without a surrogate",
        soft="infinities with one",
        looks="probe",
    ),
    Code(
        "P7",
        "outputs should be logits: probabilities near 0 and 1 have no gradient left",
        soft=f"AutoAttack's rule: all in [0,1], and of sum 1, to {P7_TOLERANCE:g}",
        looks="probe",
    ),
    Code(
        "P8",
        "answers must not be surer than float32 can tell from certain: the cross-entropy has no "
        "gradient there",
        soft=f"over {P8_SHARE:.0%} of the images have a gap of over {P8_GAP} between the two "
        f"largest logits, or a range of over {P8_RANGE:,.0f}, and D1 does not say it",
        looks="probe",
    ),
    Code(
        "P11",
        "a gradient must reach the image",
        hard="none does",
        soft="none does, and a surrogate is declared",
        looks="probe",
    ),
    Code(
        "P12",
        "outputs that take a few values only, or tie: attacks that see scores see little",
        soft=f"distinct values of a logit for fewer than {P12_FEW:.0%} of the outputs, or over "
        f"{P12_TIED:.0%} of these tie",
        looks="probe",
    ),
    Code(
        "P13",
        "an answer must follow its image, not move in steps",
        hard=f"on over {P13_SHARE:.0%} of the images {P13_NUDGE:g} in every pixel changes nothing "
        "and eps does",
        soft="the same, and a surrogate is declared",
        looks="probe",
    ),
    Code(
        "P14",
        "a prediction must be the same whether gradients are on or off",
        hard="it is another one. A prediction that differentiates asks for A8 and A9, too",
        looks="probe",
    ),
    Code(
        "P15",
        "answers and gradients must be those of float64",
        soft=f"over {P15_DIFFER:.0%} of the answers of a deterministic defence differ, or the "
        f"median cosine is below {P15_COSINE}",
        looks="probe",
    ),
    Code(
        "P16",
        "what a defence draws must follow the seeds of the harness",
        soft="it has a generator of its own, and two predictions under one seed differ; or it "
        "seeds torch's generator itself",
        looks="probe",
    ),
    Code(
        "P17",
        "a row must leave the process as it was",
        hard="a prediction, or what it imports, replaces a function or adds a global hook, or "
        "changes the attacker's images",
        soft="it changes other global state: a default, a switch, the environment",
        looks="border",
    ),
    Code(
        "D1",
        "gradients that are exactly zero on examples that still stand",
        hard=f"{D1_SHARE:.0%} under every loss",
        soft=f"{D1_SHARE:.0%} under the cross-entropy alone",
        looks="probe, audit",
    ),
    Code(
        "D2",
        "gradients that are NaN or infinite: the sign of NaN is 0, so the attack stands still",
        hard=f"{D2_SHARE:.0%}",
        soft="any",
        looks="probe, audit",
    ),
    Code(
        "D3",
        "with an unbounded eps every image must fall to the gradients",
        hard=f"at eps 1 in linf gradients leave over {D3_HARD:.0%}",
        soft=f"over {D3_SOFT:.0%}",
        looks="audit over eps",
    ),
    Code(
        "D4",
        "robust accuracy must fall as eps grows",
        hard="it rises by more than two paired standard errors; or from over "
        f"{D4_STANDS:.0%} it falls by less than {D4_FALL:.0%} while eps grows fourfold",
        looks="audit over eps",
    ),
    *(
        Code(
            code,
            question,
            hard=f"it breaks over {BEATEN_HARD:.0%} of the examples alone, surely (95%)",
            soft=f"over {BEATEN_SOFT:.1%}, surely",
            looks="audit",
        )
        for code, question in (
            ("D5", "one step of FGSM must not beat many steps of PGD"),
            ("D7", "an attack without gradients must not beat the attacks with them"),
            (
                "D8",
                "an attack transferred from another model must not beat the gradients of this one",
            ),
            ("D9", "random noise must not beat the gradients"),
        )
    ),
    Code(
        "D6",
        "twice the steps, or the restarts, must not find more",
        hard=f"over {100 * EFFORT_HARD:.0f} points, beyond two paired standard errors",
        soft=f"over {100 * EFFORT_SOFT} points, likewise",
        looks="audit of effort",
    ),
    Code(
        "D10",
        "an attack by gradients that leaves the image where it is has not attacked",
        hard=f"over {D10_SHARE:.0%} of what stands",
        looks="audit",
    ),
    Code(
        "D12",
        "gradients must agree with finite differences",
        hard=f"off by {D12_ERROR} or more over eps/100, or flat on over {D12_FLAT:.0%}",
        soft="the same, and a surrogate is declared",
        looks="probe",
    ),
    Code(
        "D14",
        "twice the averaged draws must not find more",
        hard="as D6",
        soft="as D6; or single draws foretell that the attacks average too few, or show no mean at "
        f"all on over {NOISE:.0%} of the examples",
        looks="audit of effort, check `signal`",
    ),
    Code(
        "D16",
        "an attack must not find more for rescaled logits",
        soft=f"over {100 * D16_GAIN} points more than on the logits as they are, beyond two "
        "paired standard errors: keep the strongest",
        looks="audit of `scale`",
    ),
    Code(
        "D18",
        "the same attacks, on a classifier that nothing defends, must find what is there",
        hard="the row's gradient attacks, all of which the plain classifier has met but those "
        f"that average draws, leave over {100 * D18_SHORT:.0f} points more of it than all of its "
        "attacks do",
        looks="audit, positive control",
    ),
    Code(
        "V1",
        "proposals that were not finite were dropped, which helps the defence",
        hard=f"over {V1_SHARE:.1%} of the examples",
        soft="any",
        looks="audit",
    ),
    Code(
        "V3",
        "proposals outside of ball or box were projected back",
        soft="any",
        looks="audit",
    ),
    Code(
        "V8",
        "adversarial images must survive being stored in 8 bits",
        soft=f"over {100 * V8_LOSS:.0f} points stand again, beyond two paired standard errors",
        looks="audit of `eight-bit`",
    ),
    Code(
        "W1",
        "robust accuracy above clean accuracy cannot be",
        soft="it is, beyond two paired standard errors",
        looks="audit",
    ),
    Code(
        "W2",
        "the draws that chose the attack and those that scored it disagree: too few selection "
        "draws",
        soft=f"by over {100 * W2_GAP:.0f} points",
        looks="audit",
    ),
    Code(
        "W3",
        "an example that is certified at this eps cannot fall",
        hard="in l2 more fall, surely, than alpha allows",
        looks="audit",
    ),
    Code(
        "E1",
        "the cells of the row used different weights files under one name",
        hard="any",
        looks="audit",
    ),
    Code(
        "G1",
        "clean accuracy differs from the published one: not the same model, images or "
        "preprocessing",
        soft="the published one is outside of the interval",
        looks="audit",
    ),
    Code(
        "G2",
        "more survives here than under the published attack: the attacks of this row are the "
        "weaker ones",
        soft="the published one is below the interval",
        looks="audit",
    ),
    Code(
        "G3",
        "robust accuracy over one point from the published one, at enough examples to tell: "
        "another model, or attacks of another strength",
        soft=f"over {100 * G3_GAP:.0f} point, at n of {G3_EXAMPLES} or more",
        looks="audit",
    ),
)

REQUIRED_ATTACKS = {
    "A1": "attack the whole defence through its gradients, averaged over its draws",
    "A2": "attack the classifier alone, and score on the defence",
    "A3": "gradients past a stage that has none, as if it were the identity",
    "A4": "gradients through a smooth stand-in for a stage that has none",
    "A5": "attack the output before its last, saturating map",
    "A6": "attack one frozen draw of the randomness",
    "A7": "attack through the mean latent instead of sampled ones",
    "A8": "of a defence that optimises at test time: gradients through all of its steps",
    "A9": "of a defence that optimises at test time: gradients as if its steps moved every image "
    "alike",
}


def code_order(code: str) -> tuple[str, int]:
    """Where a code stands in a list: by its letter, then by its number."""
    return code[0], int(code[1:])


def all_codes() -> list[Code]:
    """Every code that a probe, an audit or a registered check raises, in order."""
    of_checks = [code for entry in checks for code in entry.facts.codes]
    return sorted([*CODES, *of_checks], key=lambda code: code_order(code.id))


def code_questions() -> dict[str, str]:
    """What each code asks, those of required attacks too."""
    return REQUIRED_ATTACKS | {code.id: code.question for code in all_codes()}
