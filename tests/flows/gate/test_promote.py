"""From a challenger to a verdict to a moved or unmoved alias: real MLflow and its twin, measuring left out."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flows.adapters.fakes import FakeRegistry
from flows.adapters.tracking import Promotion, Registry
from flows.cli import promotion
from flows.core import lineage
from flows.gate import promote
from flows.gate.measure import Findings, Pair
from flows.gate.promote import VerdictRequest
from flows.gate.rules import Measured, Verdict
from flows.versions import promotions, version_bundles
from flows.versions.promotions import PromotionError
from pvqae.cli.console import to_json
from pvqae.core.config import Gate
from pvqae.core.errors import DataError, FormatError, IntegrityError
from tests.flows.gate.test_gate_rules import SOUND

MODEL = "pvqae-x-part"
GOOD, WORSE, FEW = SOUND, replace(SOUND, parity=1.0), replace(SOUND, groups=3)
ASKED = VerdictRequest("samples", "40 new images")


@pytest.fixture(autouse=True)
def _no_mlflow_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A logged model takes seconds; here a version's bundle is a folder of its own."""
    from flows.adapters.registry import Mlflow

    monkeypatch.setattr(Mlflow, "download", lambda self, name, version, out: _copied(tmp_path, version, out))
    monkeypatch.setattr(FakeRegistry, "download", lambda self, name, version, out: _copied(tmp_path, version, out))


def _copied(tmp_path: Path, version: str, out: Path) -> Path:
    target = out / "bundle"
    target.mkdir()
    for file in (tmp_path / f"bundle-{version}").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def bundle(folder: Path, text: str) -> str:
    """A sealed folder, with the backbone that an export adds; the hash of the evaluated one, without it."""
    folder.mkdir()
    sums = {}
    for name, content in (("backbone.safetensors", "features"), ("weights.safetensors", text)):
        (folder / name).write_text(content)
        sums[name] = hashlib.sha256(content.encode()).hexdigest()
    (folder / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    own = f"{sums['weights.safetensors']}  weights.safetensors\n"
    return hashlib.sha256(own.encode()).hexdigest()


@pytest.fixture
def add(registry: Registry, tmp_path: Path) -> Callable[..., str]:
    """A new version, with its alias."""

    def added(alias: str, **tags: str) -> str:
        number = str(len(list(tmp_path.glob("bundle-*"))) + 1)
        sha256 = bundle(tmp_path / f"bundle-{number}", f"weights {number}")
        run = registry.start("pvqae-x", "part")
        known = dict.fromkeys(lineage.REQUIRED, "known") | {"bundle_sha256": sha256, "mlflow_run": run} | tags
        version = registry.register(MODEL, run, f"/models/{number}", known)
        kind = "initial" if alias == "champion" else "challenger"
        promotions.move(registry, MODEL, alias, version, kind=kind, reasons=("because",))
        return version

    return added


def sound(*_: object) -> None:
    """Load any version: these bundles hold no detector."""


def ask(registry: Registry, root: Path, found: Measured | Exception, asked: VerdictRequest = ASKED) -> Verdict:
    def measure(pair: Pair) -> Findings:
        if isinstance(found, Exception):
            raise found
        return Findings(replace(found, flaws=pair.flaws), pd.DataFrame({"sample_id": ["a"]}), "list")

    return promote.decide(registry, root, "x", "part", measure, Gate(), asked, loads=sound)


def champion_moves(registry: Registry) -> list[Promotion]:
    return [entry for entry in registry.promotions(MODEL) if entry.alias == "champion"]


def test_a_passed_challenger_becomes_champion_and_the_log_says_why(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("champion")
    add("challenger", git_sha="abc")
    verdict = ask(registry, tmp_path, GOOD)
    assert (verdict.outcome, verdict.promoted, verdict.version, verdict.champion) == ("pass", True, "2", "1")
    assert registry.alias(MODEL, "champion") == "2"
    entry = champion_moves(registry)[-1]
    assert (entry.kind, entry.from_version, entry.to_version, entry.verdict) == ("gate", "1", "2", "pass")
    assert entry.reasons == ("samples: 40 new images", *verdict.lines)
    assert entry.lineage["git_sha"] == "abc"
    assert entry.who
    tags = registry.version_tags(MODEL, "2")
    assert (tags["gate_outcome"], tags["gate_champion"], tags["gate_list_sha256"]) == ("pass", "1", "list")
    assert len(tags["gate_verdict"].splitlines()) == len(verdict.lines)


@pytest.mark.parametrize(("found", "outcome"), [(WORSE, "refused"), (FEW, "insufficient")])
def test_what_does_not_pass_moves_nothing_but_is_recorded(
    registry: Registry, add: Callable[..., str], tmp_path: Path, found: Measured, outcome: str
) -> None:
    add("champion")
    add("challenger")
    verdict = ask(registry, tmp_path, found)
    assert (verdict.outcome, verdict.promoted) == (outcome, False)
    assert registry.alias(MODEL, "champion") == "1"
    assert len(champion_moves(registry)) == 1
    assert registry.version_tags(MODEL, "2")["gate_outcome"] == outcome


def test_an_override_moves_the_alias_and_is_logged_with_the_verdict(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("champion")
    add("challenger")
    verdict = ask(registry, tmp_path, WORSE, replace(ASKED, override="line stands still"))
    assert (verdict.outcome, verdict.promoted) == ("refused", True)
    entry = champion_moves(registry)[-1]
    assert (entry.kind, entry.verdict, entry.reasons[0]) == ("override", "refused", "override: line stands still")
    assert any(line.startswith("broken: parity") for line in entry.reasons)


def test_an_override_needs_no_gate_images_an_ordinary_verdict_does(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("champion")
    add("challenger")
    with pytest.raises(DataError, match="gone"):
        ask(registry, tmp_path, DataError("gone"))
    assert ask(registry, tmp_path, DataError("gone"), replace(ASKED, override="urgent")).promoted
    assert "could not run: gone" in champion_moves(registry)[-1].reasons[1]


@pytest.mark.parametrize("tags", [{"never_promotable": "true"}, {"git_sha": ""}])
def test_what_could_not_be_rebuilt_is_never_promoted_not_even_by_override(
    registry: Registry, add: Callable[..., str], tmp_path: Path, tags: dict[str, str]
) -> None:
    add("champion")
    add("challenger", **tags)
    assert ask(registry, tmp_path, GOOD).outcome == "refused"
    with pytest.raises(PromotionError, match="not by override"):
        ask(registry, tmp_path, GOOD, replace(ASKED, override="please"))
    assert registry.alias(MODEL, "champion") == "1"


@pytest.mark.parametrize("side", ["1", "2"])
def test_a_bundle_that_is_not_the_evaluated_one_is_refused(
    registry: Registry, add: Callable[..., str], tmp_path: Path, side: str
) -> None:
    add("champion")
    add("challenger")
    for file in (tmp_path / f"bundle-{side}").iterdir():
        file.unlink()
    (tmp_path / f"bundle-{side}").rmdir()
    bundle(tmp_path / f"bundle-{side}", "exchanged, and sealed again")
    with pytest.raises(IntegrityError, match=f"{MODEL} version {side}: .*the evaluated bundle"):
        ask(registry, tmp_path, GOOD)
    (tmp_path / f"bundle-{side}" / "weights.safetensors").write_text("changed")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        ask(registry, tmp_path, GOOD)
    overriding = replace(ASKED, override="whatever")
    if side == "1":  # without a sound champion there must be a way on
        assert ask(registry, tmp_path, GOOD, overriding).promoted
        return
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        ask(registry, tmp_path, GOOD, overriding)


def refuses(side: str, older: bool) -> Callable[[Path], None]:
    """Load every bundle but that of one version, which is of another format."""

    def load(folder: Path) -> None:
        if folder.parent.name == side:
            raise FormatError(f"{folder}: another format", older=older)

    return load


@pytest.mark.parametrize("older", [True, False])
def test_a_champion_of_a_format_read_no_more_counts_as_absent_one_of_newer_code_stops_the_gate(
    registry: Registry, add: Callable[..., str], tmp_path: Path, older: bool
) -> None:
    add("champion")
    add("challenger")
    seen: list[Pair] = []

    def measure(pair: Pair) -> Findings:
        seen.append(pair)
        first = replace(SOUND, auroc=None, kinds={}, latency_ms=None, size_bytes=None)
        return Findings(first, pd.DataFrame({"sample_id": ["a"]}), "list")

    def judge() -> Verdict:
        return promote.decide(registry, tmp_path, "x", "part", measure, Gate(), ASKED, loads=refuses("1", older))

    if older:
        verdict = judge()
        assert verdict.promoted
        assert seen[0].champion is None
        assert verdict.lines[0].startswith("not compared with version 1, which can't be loaded")
        assert champion_moves(registry)[-1].from_version == "1"
        return
    with pytest.raises(IntegrityError, match=r"version 1, the champion: .*promote rollback .*--override"):
        judge()
    assert registry.alias(MODEL, "champion") == "1"


def test_a_challenger_that_cannot_be_loaded_is_not_promoted_not_even_by_override(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("champion")
    add("challenger")
    asked, loads = replace(ASKED, override="please"), refuses("2", True)
    with pytest.raises(FormatError):
        promote.decide(
            registry, tmp_path, "x", "part", lambda pair: pytest.fail("measured"), Gate(), asked, loads=loads
        )
    assert registry.alias(MODEL, "champion") == "1"


def test_a_first_champion_comes_through_the_absolute_rules(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("challenger")
    first = replace(SOUND, auroc=None, kinds={}, latency_ms=None, size_bytes=None)
    assert not ask(registry, tmp_path, replace(first, own_auroc=0.4)).promoted
    verdict = ask(registry, tmp_path, first)
    assert (verdict.promoted, verdict.champion) == (True, "none")
    assert champion_moves(registry)[-1].kind == "initial"


def test_without_a_challenger_there_is_nothing_to_judge(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(PromotionError, match="run `python -m flows train` first"):
        ask(registry, tmp_path, GOOD)
    add("champion")
    verdict = ask(registry, tmp_path, GOOD)
    assert (verdict.outcome, verdict.promoted) == ("refused", False)
    assert "nothing to judge" in verdict.lines[0]


def test_a_kill_between_log_and_alias_is_completed_by_the_next_run(
    registry: Registry, add: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("champion")
    add("challenger")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(registry), "set_alias", killed)
        with pytest.raises(Killed):
            ask(registry, tmp_path, GOOD)
    assert registry.alias(MODEL, "champion") == "1"
    assert champion_moves(registry)[-1].to_version == "2"
    verdict = ask(registry, tmp_path, GOOD)
    assert "nothing to judge: version 2 is champion" in verdict.lines[0]
    assert registry.alias(MODEL, "champion") == "2"
    assert len(champion_moves(registry)) == 2


def test_a_champion_that_moved_while_the_gate_measured_stays(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("champion")
    add("challenger")

    def measure(pair: Pair) -> Findings:
        add("champion")
        return Findings(SOUND, pd.DataFrame({"sample_id": ["a"]}), "list")

    with pytest.raises(PromotionError, match="was version 1 when this was decided, now it is 3"):
        promote.decide(registry, tmp_path, "x", "part", measure, Gate(), ASKED, loads=sound)
    assert registry.alias(MODEL, "champion") == "3"


def promoted_twice(registry: Registry, add: Callable[..., str], root: Path) -> None:
    """Versions 1, 2 and 3, champions one after the other."""
    add("champion")
    for _ in range(2):
        add("challenger")
        assert ask(registry, root, GOOD).promoted


def test_rollback_goes_back_one_champion_at_a_time_and_bars_what_it_took_back(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    promoted_twice(registry, add, tmp_path)

    def back(reason: str) -> str:
        return promotions.rollback(registry, tmp_path, "x", MODEL, reason, loads=sound).to_version

    with pytest.raises(PromotionError, match="needs a reason"):
        back(" ")
    assert back("misses scratches") == "2"
    assert registry.alias(MODEL, "champion") == "2"
    verdict = ask(registry, tmp_path, GOOD)
    assert verdict.outcome == "refused"
    assert any("was rolled back: misses scratches" in line for line in verdict.lines)
    assert back("that one, too") == "1"
    with pytest.raises(PromotionError, match="no earlier champion"):
        back("all of them")
    assert ask(registry, tmp_path, GOOD, replace(ASKED, override="after all")).promoted
    assert back("no") == "1"
    table = promotion._log_rows({MODEL: registry.promotions(MODEL)})
    assert [row["kind"] for row in table if row["alias"] == "champion"] == [
        *("initial", "gate", "gate", "rollback", "rollback", "override", "rollback"),
    ]
    whole = json.loads(to_json({MODEL: registry.promotions(MODEL)}))
    assert whole[MODEL][-1]["reasons"] == ["no"]


def test_a_rollback_that_names_its_version_can_be_asked_for_again(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    promoted_twice(registry, add, tmp_path)
    first = promotions.rollback(registry, tmp_path, "x", MODEL, "scratches", "3", loads=sound)
    assert promotions.rollback(registry, tmp_path, "x", MODEL, "scratches", "3", loads=sound) == first
    assert registry.alias(MODEL, "champion") == "2"
    with pytest.raises(PromotionError, match="expected version 1 as champion, found 2"):
        promotions.rollback(registry, tmp_path, "x", MODEL, "scratches", "1", loads=sound)


def test_the_log_keeps_its_order_when_the_clock_is_set_back(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    add("champion")
    future = replace(champion_moves(registry)[0], when="2999-01-01T00:00:00.000000Z")
    registry.promote(MODEL, "champion", future)
    add("challenger")
    assert ask(registry, tmp_path, GOOD).promoted
    assert champion_moves(registry)[-1].to_version == "2"
    promotions.complete(registry, MODEL)
    assert registry.alias(MODEL, "champion") == "2"


def test_real_runs_keep_the_verdict_as_files(real: Registry, database: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = real.start("pvqae-x", "part")
    version = real.register(MODEL, run, "/models/1", {"mlflow_run": run})
    verdict = Verdict("refused", False, ("broken: parity: no",), {"parity": 1.0}, version, "none")
    found = Findings(SOUND, pd.DataFrame({"sample_id": ["a"], "challenger": [1.5]}), "list")
    promote._record(real, MODEL, verdict, found, ASKED, tmp_path)
    client = MlflowClient(database)
    names = {file.path for file in client.list_artifacts(run, "gate")}
    assert names == {"gate/gate-version-1-against-none.json", "gate/gate-version-1-against-none.csv"}
    assert client.get_run(run).data.tags["gate_outcome"] == "refused"
    assert tuple(real.owners("pvqae-x")) == (MODEL,)
    assert tuple(real.owners("pvqae-y")) == ()


def test_the_evaluated_bundle_is_known_through_its_export(tmp_path: Path) -> None:
    expected = bundle(tmp_path / "one", "weights")
    version_bundles.check_evaluated(tmp_path / "one", expected)
    with pytest.raises(IntegrityError, match="the evaluated bundle"):
        version_bundles.check_evaluated(tmp_path / "one", "0" * 64)
