from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pvqae.core import config
from pvqae.core.config import Params
from pvqae.core.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "params.yaml"


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of nested sections."""
    found = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value  # an empty one is a value
        found += leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return found


def written(folder: Path, text: str) -> Path:
    (folder / "params.yaml").write_text(text, "utf-8")
    return folder / "params.yaml"


def test_deleting_a_line_of_the_shipped_file_changes_nothing() -> None:
    assert config.load(SHIPPED) == Params()


def test_the_shipped_file_shows_every_key() -> None:
    given_on_the_command_line = {"data.root"}
    shown = leaves(yaml.safe_load(SHIPPED.read_text("utf-8")))
    free = tuple(f"score.{use}." for use in ("image", "map"))  # their keys are the memories that have a weight
    keys = {key.rpartition(".")[0] if key.startswith(free) else key for key in shown}
    assert keys == set(config.known_keys()) - given_on_the_command_line


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "")) == Params()


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("train: {stepps: 3}", "train.stepps: unknown key, did you mean train.steps?"),
        ("trian: {steps: 3}", "trian: unknown key, did you mean"),
        ("score: {reccon: memory}", "did you mean score.recon?"),
        ("data: {shares: {calibrat: 0.1}}", "did you mean data.shares.calibrate?"),
    ],
)
def test_an_unknown_key_names_the_file_and_the_nearest_known_one(tmp_path: Path, text: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(written(tmp_path, text))
    assert str(tmp_path / "params.yaml") in str(caught.value)
    assert nearest in str(caught.value)


def test_every_wrong_value_is_listed_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(written(tmp_path, "image: {size: 100, aspect: square}\ntrain: {lr: 0}"))
    message = str(caught.value)
    assert "image.size" in message
    assert "found 100" in message
    assert "image.aspect" in message
    assert "'square'" in message
    assert "train.lr" in message


@pytest.mark.parametrize(
    ("item", "read"),
    [
        ("train.steps=7", lambda p: p.train.steps == 7),
        ("train.lr=2e-3", lambda p: p.train.lr == 2e-3),
        ("train.kappa=auto", lambda p: p.train.kappa == "auto"),
        ("train.kappa=0.1", lambda p: p.train.kappa == 0.1),
        ("train.horizontal_flip=true", lambda p: p.train.horizontal_flip is True),
        ("data.categories=[bottle, cable]", lambda p: p.data.categories == ("bottle", "cable")),
        ("data.shares={calibrate: 0.3}", lambda p: p.data.shares.calibrate == 0.3),
        ("data.root=a=b", lambda p: p.data.root == "a=b"),
        ("seed=3", lambda p: p.seed == 3),
    ],
)
def test_overrides_are_yaml_values(tmp_path: Path, item: str, read: Any) -> None:
    assert read(config.load(written(tmp_path, "train: {batch: 2}"), (item,)))


def test_the_last_override_wins_over_earlier_ones_and_the_file(tmp_path: Path) -> None:
    params = config.load(written(tmp_path, "train: {steps: 3, batch: 2}"), ("train.steps=5", "train.steps=6"))
    assert (params.train.steps, params.train.batch) == (6, 2)


@pytest.mark.parametrize("item", ["train.steps", "train.stepps=3", "seed.x=1", "train.steps=[1", "train.steps=many"])
def test_a_wrong_override_is_a_config_error_that_repeats_it(tmp_path: Path, item: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(written(tmp_path, "seed: 1"), (item,))
    assert item.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "seed: [1", "just words", "seed: !!bool z", "? !!timestamp x", "!!int"])
def test_what_is_not_sections_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        config.load(written(tmp_path, text))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run from the project's root"):
        config.load(tmp_path / "none.yaml")


def test_params_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().train.steps = 3  # type: ignore[misc]


floats = st.floats(1e-6, 0.3, allow_nan=False)
params = st.builds(
    Params,
    seed=st.integers(0, 2**40),
    data=st.builds(
        config.Data,
        name=st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,8}\Z"),
        root=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12),
        categories=st.lists(st.text("abcyno019-_", min_size=1, max_size=5), max_size=3).map(tuple),
        shares=st.builds(config.Shares, calibrate=floats, gate=floats, test=floats),
    ),
    image=st.builds(config.Image, size=st.integers(2, 64).map(lambda n: 32 * n)),
    train=st.builds(
        config.Train,
        lr=floats,
        kappa=st.one_of(st.just("auto"), floats),
        temperature=st.tuples(floats, floats),
        horizontal_flip=st.booleans(),
    ),
    compute=st.builds(config.Compute, threads=st.one_of(st.just("auto"), st.integers(1, 64))),
)


@settings(max_examples=50, deadline=None)
@given(params)
def test_loading_a_dump_gives_the_same_params(tmp_path_factory: pytest.TempPathFactory, some: Params) -> None:
    assert config.load(written(tmp_path_factory.mktemp("dump"), config.dump(some))) == some


DIFFERENT = [
    ("seed: 010", "seed: read as 8 here (YAML 1.1), as 10 by DVC (YAML 1.2); write 8 or 10", "seed: 10"),
    ("train:\n  steps: 1:30", "train.steps: read as 90 here (YAML 1.1), as '1:30' by DVC", "train:\n  steps: 90"),
    ("train: {horizontal_flip: yes}", "as True here (YAML 1.1), as 'yes' by DVC", "train: {horizontal_flip: true}"),
    ("flow: {push: Off}", "flow.push: read as False here", "flow: {push: false}"),
    ("image: {size: 0100}", "image.size: read as 64 here", "image: {size: 64}"),
    ("train: {temperature: [010, 1]}", "train.temperature.0: read as 8.0 here", "train: {temperature: [8.0, 1]}"),
    ("data: {name: 08}", "data.name: read as '08' here (YAML 1.1), as 8 by DVC", "data: {name: '08'}"),
    ("data: {categories: [a, 12e4]}", "data.categories.1: read as '12e4' here", "data: {categories: [a, '12e4']}"),
    (
        "data: {categories: [01]}",
        "found 1; a text that reads as something else needs quotes",
        "data: {categories: ['01']}",
    ),
    ("landing: {url: off}", "found False; a text that reads as something else needs quotes", "landing: {url: 'off'}"),
    ("seed: 1\nseed: 2", 'duplicate key "seed"', "seed: 2"),
]


@pytest.mark.parametrize(("text", "message", "repaired"), DIFFERENT)
def test_a_value_that_dvc_reads_as_another_is_named_with_the_repair(
    tmp_path: Path, text: str, message: str, repaired: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(written(tmp_path, text))
    assert message in str(caught.value)
    assert "params.yaml" in str(caught.value)
    config.load(written(tmp_path, repaired))


@pytest.mark.parametrize(
    "item", ["seed=010", "train.steps=1:30", "retrain.on_drift=no", "train={steps: 012}", "train={steps: 1:30}"]
)
def test_an_override_that_dvc_would_read_as_another_value_is_refused(tmp_path: Path, item: str) -> None:
    with pytest.raises(ConfigError, match=r"by DVC \(YAML 1.2\); write"):
        config.load(written(tmp_path, ""), (item,))


def test_an_override_takes_the_place_of_a_doubtful_value(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "seed: 010\ntrain: {steps: 012}"), ("seed=10", "train={steps: 12}")).seed == 10


@pytest.mark.parametrize("text", ["2e-3", "2E-3", "1e1", ".5", "08", "1_0.5"])
def test_a_number_that_both_come_to_is_no_difference(tmp_path: Path, text: str) -> None:
    expected = float(text)
    assert config.load(written(tmp_path, f"train: {{lambda_max: {text}}}")).train.lambda_max == expected
    assert config.load(written(tmp_path, ""), (f"train.lambda_max={text}",)).train.lambda_max == expected


@pytest.mark.parametrize("name", ["01", "08", "1e5", "no", "null", "2026-01-02"])
def test_a_text_on_the_command_line_is_as_it_was_typed(tmp_path: Path, name: str) -> None:
    overrides = (f"data.name={name}", f"data.categories=[{name}, '{name}']", f'flow.train_pool="{name}"')
    params = config.load(written(tmp_path, ""), overrides)
    assert (params.data.name, params.data.categories, params.flow.train_pool) == (name, (name, name), name)


@pytest.mark.parametrize("root", ["/a #b", "[x", "a: b", "@x", "*", "%d", "", "{x}"])
def test_a_path_on_the_command_line_may_be_anything(tmp_path: Path, root: str) -> None:
    assert config.load(written(tmp_path, ""), (f"data.root={root}",)).data.root == root


def test_an_address_may_stand_in_braces(tmp_path: Path) -> None:
    params = config.load(written(tmp_path, "landing: {url: s3://a/b}"), ("flow={tracking_uri: http://c:5000}",))
    assert (params.landing.url, params.flow.tracking_uri) == ("s3://a/b", "http://c:5000")


@pytest.mark.parametrize(
    ("text", "uri", "name"),
    [
        ("flow: {tracking_uri: 'sqlite:///x'}\nseed: x", "sqlite:///x", "demo"),
        ("flow: {tracking_uri: 'sqlite:///x', retries: -1}\ndata: {name: parts}", "sqlite:///x", "parts"),
        ("flow: 3\ndata: {name: parts, nmae: x}", "auto", "parts"),
        ("flow: {tracking_uri: [1]}\nlanding: {poll: 0}\nother: {a: {b: 1}}", "auto", "demo"),
        ("- a list", "auto", "demo"),
        ("a: [", "auto", "demo"),
    ],
)
def test_what_is_valid_of_an_invalid_file_can_be_used(tmp_path: Path, text: str, uri: str, name: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    found, wrong = config.usable(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in wrong
    assert (found.flow.tracking_uri, found.data.name) == (uri, name)
    with pytest.raises(ConfigError):
        config.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"notify": {"webhook": "example.org"}}, r"notify.webhook: expected http://\.\.\. .*, found 'example.org'"),
        ({"notify": {"mail": ["me"]}}, "notify.mail.0: expected an address, such as .*, found 'me'"),
        ({"data": {"name": "My Parts"}}, "data.name: expected lower-case letters, .*, found 'My Parts'"),
    ],
)
def test_a_form_is_told_in_words(values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config.parse(values)
