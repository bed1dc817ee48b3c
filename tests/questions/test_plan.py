"""Plans: what the flags, or a file, come to; and what is refused before anything runs."""

from fractions import Fraction
from pathlib import Path

import pytest

from bench import weights
from bench.errors import BadInput
from bench.questions.budgets import read_budget
from bench.questions.facts import ImageFacts
from bench.questions.pins import unpinned
from bench.questions.plan import plan
from bench.questions.registry import datasets, find_question
from bench.questions.request import Request, read_plan_file
from bench.questions.spec import Spec
from bench.results.store import Store
from tests.results.test_record import record


def toy(**changes: object) -> Request:
    values: dict[str, object] = {
        "dataset": "toy",
        "defences": ("toy-linear",),
        "attacks": ("toy-exact",),
    }
    return Request(**{**values, **changes})


def test_every_threat_model_gets_its_clean_cell_first() -> None:
    cells = plan(
        [toy(defences=("toy-linear", "toy-coin"), attacks=("toy-exact", "onepixel"))]
    ).cells
    asked = [(c.defence.name, c.threat.norm, c.attack.name) for c in cells]
    of_each = [("linf", "none"), ("linf", "toy-exact"), ("l0", "none"), ("l0", "onepixel")]
    assert asked == [
        *(("toy-linear", *question) for question in of_each),
        *(("toy-coin", *question) for question in of_each),
    ]
    assert {c.threat.eps for c in cells} == {Fraction(1, 10), Fraction(1)}


def test_a_deterministic_defence_gets_one_draw_a_stochastic_one_the_budgets() -> None:
    quick = read_budget("quick")
    expected = {"toy-linear": (1, 1), "toy-coin": (quick["select"], quick["draws"])}
    for cell in plan([toy(defences=("toy-linear", "toy-coin"))]).cells:
        assert (cell.select, cell.draws) == expected[cell.defence.name]
        assert cell.stochastic == (cell.defence.name == "toy-coin")
        assert cell.batch == quick["batch"]
    assert {c.draws for c in plan([toy(defences=("toy-coin",), draws=3)]).cells} == {3}


def test_roles_are_replaced_and_budget_knobs_filled_in_under_the_users() -> None:
    (_, cell) = plan([toy(attacks=("pgd[restarts=7]",), budget="quick")]).cells
    assert cell.defence.params["classifier"] == "toy:linear"
    assert cell.attack.params["restarts"] == 7
    assert cell.attack.params["steps"] == read_budget("quick")["pgd"]["steps"]


def test_attacks_for_stochastic_defences_are_left_out_for_others() -> None:
    cells = plan([toy(defences=("toy-linear", "toy-coin"), attacks=("pgd-eot",))]).cells
    assert [(c.defence.name, c.attack.name) for c in cells] == [
        ("toy-linear", "none"),
        ("toy-coin", "none"),
        ("toy-coin", "pgd-eot"),
    ]


def test_a_norm_filters_the_default_attacks() -> None:
    asked = plan([Request(norm="l2", defences=("undefended",))])
    assert {c.threat.norm for c in asked.cells} == {"l2"}
    assert any("onepixel" in note for note in asked.notes)


def test_weights_are_pinned_to_their_digest() -> None:
    (cell, *_) = plan([Request(defences=("at",), attacks=("none",))]).cells
    digest = weights.digest(weights.locate("own:digits-at"))
    assert len(digest) == 64
    assert cell.defence.params["classifier"] == f"own:digits-at@{digest[:8]}"


def test_the_default_sweep_on_digits_has_every_defence_and_family() -> None:
    cells = plan([Request()]).cells
    assert {c.defence.name for c in cells} >= {
        "undefended",
        "at",
        "carso",
        "vae",
        "jpeg",
        "bit-depth",
    }
    assert {c.attack.name for c in cells} >= {
        "none",
        "fgsm",
        "pgd",
        "pgd-eot",
        "autoattack",
        "square",
        "spsa",
        "onepixel",
        "boundary",
        "hopskipjump",
        "transfer",
    }
    assert len({c.attack for c in cells if c.attack.name == "transfer"}) == 3
    assert int(cells[0].dataset.params["n"]) >= 100


@pytest.mark.parametrize("budget", ["quick", "standard", "full"])
def test_every_budget_names_attacks_and_knobs_that_exist(budget: str) -> None:
    data = read_budget(budget)
    for name, knobs in data.items():
        if isinstance(knobs, dict):
            find_question(name).resolve(knobs)
    assert all(data[key] >= 1 for key in ("draws", "select", "batch"))
    assert plan([Request(budget=budget)]).cells


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digit"}, "dataset 'digit' is unknown; did you mean 'digits'?"),
        (
            {"defences": ("toy-linar",)},
            "defence 'toy-linar' is unknown; did you mean 'toy-linear'?",
        ),
        ({"attacks": ("pgd[stesp=3]",)}, "attack 'pgd' takes no 'stesp'"),
        ({"attacks": ("pgd[steps=0]",)}, "attack 'pgd': steps=0 is too small; the least is 1"),
        (
            {"attacks": ("pgd[step=-1]",)},
            "attack 'pgd': step=-1.0 is not a finite number of at least 0; the default is 2.0",
        ),
        (
            {"attacks": ("pgd[wide=nan]",)},
            "attack 'pgd': wide=nan is not a finite number of at least 0; the default is 3.0",
        ),
        (
            {"attacks": ("spsa[delta=inf]",)},
            "attack 'spsa': delta=inf is not a finite number of at least 0; the default is 0.01",
        ),
        (
            {"attacks": ("pgd[loss=ce+margn]",)},
            "attack 'pgd': loss='margn' is unknown; did you mean 'margin'?",
        ),
        (
            {"attacks": ("autoattack[version=std]",)},
            "attack 'autoattack': version='std' is unknown",
        ),
        ({"budget": "quik"}, "budget 'quik' is unknown; did you mean 'quick'?"),
        ({"norm": "linff"}, "norm 'linff' is unknown; did you mean 'linf'?"),
        ({"eps": "-1"}, "eps '-1' is negative"),
        ({"eps": "a"}, "eps 'a' is not a number"),
        ({"eps": "1/5,"}, "eps '' is not a number"),
        ({"eps": ""}, "eps '' is not a number"),
        ({"queries": "100"}, "queries 100: no attack here counts its queries by a knob; "),
        (
            {"queries": "many", "attacks": ("square",)},
            "attack 'square': queries='many' is not a whole number",
        ),
        ({"queries": "0", "attacks": ("square",)}, "attack 'square': queries=0 is too small"),
        ({"n": 0}, "n 0 is too small"),
        ({"draws": 0}, "draws 0 is too small"),
        ({"batch": -1}, "batch -1 is too small"),
        ({"n": 3, "first": 3}, "n 3 and first 3 exclude each other"),
        ({"norm": "l1"}, "attack 'toy-exact' has no l1 form; it has linf"),
        ({"defences": ("toy-linear[classifier=toy:lineal]",)}, "did you mean 'linear'?"),
        ({"defences": ("toy-linear[classifier=own:nothing]",)}, "own:nothing"),
        ({"defences": ("toy-linear[classifier=file:nothing.safetensors]",)}, "does not exist"),
        ({"defences": ("carso",)}, "the dataset has nothing for '@carso'"),
    ],
)
def test_bad_requests_say_what_is_right(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        plan([toy(**changes)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": "8"}, "eps 8 is more than the whole box in linf; did you mean 8/255?"),
        ({"eps": "1.5"}, "did you mean 1.5/255?"),
        ({"eps": " 256/255 "}, "eps 256/255 is more than the whole box in linf; the most is 1"),
        ({"eps": "1/10,8"}, "did you mean 8/255?"),
        ({"eps": "128", "norm": "l2", "attacks": ("pgd",)}, "in l2; did you mean 128/255?"),
        ({"eps": "2041/255", "norm": "l2", "attacks": ("pgd",)}, "the most is 8, the square root"),
        ({"eps": "64.1", "norm": "l1", "attacks": ("pgd",)}, "did you mean 64.1/255?"),
        ({"eps": "6400000", "norm": "l1", "attacks": ("pgd",)}, "the most is 64"),
        ({"eps": "65", "norm": "l0", "attacks": ("pgd",)}, "more than the 64 pixels of an image"),
        ({"defences": ()}, "the list of defences is empty"),
        ({"attacks": ()}, "the list of attacks is empty"),
        ({"dataset": "toy-grey", "norm": "l2", "attacks": ("pgd",)}, "has no eps for l2"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], message: str) -> None:
    values = {"dataset": "digits", "defences": ("at",), "attacks": ("pgd",), **changes}
    with pytest.raises(BadInput) as caught:
        plan([Request(**values)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", "1"), ("linf", "255/255"), ("l2", "8"), ("l1", "64"), ("l0", "64")]
)
def test_eps_may_be_as_large_as_the_box(norm: str, eps: str) -> None:
    asked = plan([Request(defences=("at",), attacks=("pgd",), norm=norm, eps=eps)])
    assert {cell.threat.eps for cell in asked.cells} == {Fraction(eps)}
    assert not asked.notes


@pytest.mark.parametrize(("norm", "eps"), [("linf", "0"), ("l2", "0/255"), ("l0", "1/2")])
def test_an_eps_that_allows_nothing_is_noted(norm: str, eps: str) -> None:
    (note,) = plan([Request(defences=("at",), attacks=("pgd",), norm=norm, eps=eps)]).notes
    assert "nothing can be attacked" in note


def test_a_default_attack_in_a_norm_without_an_eps_is_left_out() -> None:
    asked = plan([Request(dataset="toy-grey", defences=("toy-masked",))])
    assert {cell.threat.norm for cell in asked.cells} == {"linf"}
    assert any("onepixel" in note and "has no eps" in note for note in asked.notes)
    with pytest.raises(BadInput, match="attack 'onepixel' has no linf form"):
        plan([Request(dataset="toy-grey", defences=("toy-masked",), attacks=("onepixel",))])


def test_the_shape_of_a_dataset_that_does_not_say_it_is_looked_up() -> None:
    looked: list[Spec] = []

    def look(spec: Spec) -> ImageFacts:
        looked.append(spec)
        return ImageFacts(40, (1, 2, 3), ("a doubt",))

    asked = plan([toy()], look=look)
    assert looked == [Spec("toy")]
    assert asked.notes == ("a doubt",)
    with pytest.raises(BadInput, match="more than the whole box in l1; did you mean 7/255"):
        plan([toy(norm="l1", eps="7", attacks=("pgd",))], look=look)


def test_a_default_n_is_no_more_than_there_are() -> None:
    def look(spec: Spec) -> ImageFacts:
        return ImageFacts(13, (1, 2, 3))

    asked = plan([toy()], look=look)
    assert {cell.dataset.params["n"] for cell in asked.cells} == {13}
    assert asked.notes == ("dataset 'toy' has 13 images in its test split: n is 13, not 20",)
    for changes in ({"n": 15}, {"first": 15}):
        asked = plan([toy(**changes)], look=look)
        assert asked.notes == ()
        assert {tuple(cell.dataset.params.items()) for cell in asked.cells} == {
            tuple(changes.items())
        }


def test_several_eps_are_a_curve_of_the_same_attacks() -> None:
    attacks = ("toy-exact", "onepixel")
    curve = plan([toy(eps="1/10,1/5,1", attacks=attacks)]).cells
    one_by_one = plan([toy(eps=eps, attacks=attacks) for eps in ("1/10", "1/5", "1")]).cells
    assert curve == one_by_one
    assert [cell.threat.eps for cell in curve if cell.attack.name == "toy-exact"] == [
        Fraction(1, 10),
        Fraction(1, 5),
        Fraction(1),
    ]


def test_several_numbers_of_queries_are_a_curve() -> None:
    attacks = ("square", "hopskipjump", "autoattack")
    cells = plan([Request(defences=("at",), attacks=attacks, queries="50,100")]).cells
    asked = [(cell.attack.name, cell.attack.params.get("queries")) for cell in cells]
    assert asked == [
        ("none", None),
        ("square", 50),
        ("square", 100),
        ("hopskipjump", 50),
        ("hopskipjump", 100),
        ("autoattack", 400),
    ]


def test_a_curve_can_be_written_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "curve.toml"
    path.write_text(
        """
        dataset = "toy"
        eps = ["1/10", "1/5"]
        queries = [50, 100]
        attacks = ["square"]
        defences = ["toy-linear"]
        """
    )
    (request,) = read_plan_file(path)[1]
    assert (request.eps, request.queries) == ("1/10,1/5", "50,100")


def test_missing_weights_in_a_default_list_are_noted_and_left_out() -> None:
    asked = plan([Request(dataset="toy", attacks=("none",))])
    assert "carso" not in {c.defence.name for c in asked.cells}
    assert any("carso" in note for note in asked.notes)


def test_the_full_budget_transfers_from_an_ensemble_with_diversity_too() -> None:
    cells = plan([Request(defences=("undefended",), budget="full", n=10)]).cells
    knobs = [cell.attack.params for cell in cells if cell.attack.name == "transfer"]
    sources = [(unpinned(str(each["source"])), each.get("diversity", 0)) for each in knobs]
    alone = [f"own:digits-{name}" for name in ("standard", "other", "at")]
    assert sources == [*((name, 0) for name in alone), ("+".join(alone), 0.5)]


def test_a_file_gives_the_same_plan_as_its_flags(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        dataset = "toy"
        defences = ["toy-linear"]
        seed = 3
        [[sweep]]
        attacks = ["toy-exact"]
        [[sweep]]
        attacks = ["toy-two"]
        eps = "1/5"
        """
    )
    assert read_plan_file(path) == read_plan_file(path), (
        "a sweep plans again once the weights are there"
    )
    name, requests = read_plan_file(path)
    assert name == "mine"
    by_flags = [toy(seed=3), toy(seed=3, attacks=("toy-two",), eps="1/5")]
    assert plan(requests).cells == plan(by_flags).cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datset = 'toy'", "did you mean 'dataset'"),
        ("n = 'many'", "n='many' is not a whole number"),
        ("n = 3.5", "n=3.5 is not a whole number"),
        ("n = true", "n=True is not a whole number"),
        ("seed = [1]", r"seed=\[1\] is not a whole number"),
        ("dataset = 3", "dataset=3 is not a text"),
        ("norm = ['linf']", "norm=.* is not a text"),
        ("budget = {name = 'quick'}", "budget=.* is not a text"),
        ("defences = 3", "defences=3 is not a list of names"),
        ("attacks = [3]", r"attacks=\[3\] is not a list of names"),
        ("attacks = [['pgd']]", "attacks=.* is not a list of names"),
        ("[attacks]\npgd = 1", "attacks=.* is not a list of names"),
        ("eps = true", "eps=True is not a number or a text"),
        ("eps = [1, [2]]", "eps=.* is not a number or a text"),
        ("eps = []", r"eps=\[\] is an empty list"),
        ("queries = []", r"queries=\[\] is an empty list"),
        ("[eps]\nlinf = 1", "eps=.* is not a number or a text"),
        ("eps = 2026-11-30", "eps=.* is not a number or a text"),
        ("sweep = 3", "sweep=3 is not tables"),
        ("sweep = [3]", r"sweep=\[3\] is not tables"),
        ("sweep = []", "its list of sweeps is empty"),
        ("[[sweep]]\n[[sweep.sweep]]", "has the key 'sweep'"),
        (f"eps = {'[' * 5000}", "is not TOML"),
        ("x =", "is not TOML"),
    ],
)
def test_bad_plan_files_say_what_is_right(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_plan_file(path)


def test_a_plan_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not TOML"):
        read_plan_file(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defences = 'toy-linear, toy-coin[p=0.25]'", ("toy-linear", "toy-coin[p=0.25]")),
        ("defences = ['toy-linear', 'toy-coin[p=0.25]']", ("toy-linear", "toy-coin[p=0.25]")),
        ("defences = []", ()),
        ("defences = ' , '", ()),
    ],
)
def test_a_list_in_a_file_may_be_a_text(
    tmp_path: Path, text: str, expected: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    (request,) = read_plan_file(path)[1]
    assert request.defences == expected


def test_a_plan_that_is_not_there_is_met_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'smoke'"):
        read_plan_file(Path("smoek"))


def test_pending_is_what_the_store_lacks(tmp_path: Path) -> None:
    asked = plan([toy()])
    store = Store(tmp_path)
    store.put(record(cell=asked.cells[0]))
    assert asked.pending(store) == asked.cells[1:]


def test_a_folder_is_a_dataset() -> None:
    assert datasets.get("folder")
    with pytest.raises(BadInput, match="@standard"):
        plan([Request(dataset="folder:some/where", defences=("undefended",))])
