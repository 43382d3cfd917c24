"""The suite's bookkeeping, with contestants that only say how long they took."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import pytest

BENCH = Path(__file__).parents[1] / "bench"
DOCUMENT = "# Results\n\nWhat was there.\n\n## A section\n\n| a |\n|---|\n| 1 |\n"


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("contest")


@pytest.fixture
def suite(contest: Any) -> Any:
    return importlib.import_module("suite")


def case_of(contest: Any, **options: Any) -> Any:
    never: Any = None
    others = {"loop": never, "peer": never}
    return contest.Case("small", "Three layers.", {"refold": never}, others, **options)


def contest_of(contest: Any, **seconds: list[float]) -> Any:
    laps = {
        name: [contest.Lap(s, contest.Found(0.25), 300.0) for s in each]
        for name, each in seconds.items()
    }
    return contest.Contest(laps, peaks={"float32": [50.0, 100.0]}, idle={"refold": 250.0})


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians(contest: Any) -> None:
    found = contest_of(contest, refold=[1.0, 2.0, 4.0], loop=[3.0, 2.0, 8.0])
    spread = contest.ratio(found, "refold", "loop")
    assert (spread.middle, spread.low, spread.high) == (2.0, 1.0, 3.0)
    assert str(spread) == "2.00 (1.00 to 3.00)"
    assert contest.ratio(found, "refold", "peer") is None


def test_the_share_of_the_peak_is_of_the_best_round_and_of_the_kind_of_product(
    contest: Any,
) -> None:
    found = contest_of(contest, refold=[1.0, 2.0, 9.0])
    own = case_of(contest, flops=40e9)
    assert contest.share(own, found, "refold") == pytest.approx(40 / 2.0 / 100.0)
    found.laps["refold"].append(contest.Lap(2.0, contest.Found(products="bfloat16"), 0.0))
    assert contest.share(own, found, "refold") is None  # of which no peak was measured


def test_a_table_says_what_was_aimed_at_and_whether_it_is_met(contest: Any) -> None:
    own = case_of(
        contest, aims={("refold", "loop"): 1.5, ("refold", "peer"): 1.5}, units=4, unit="step"
    )
    found = contest_of(contest, refold=[1.0], loop=[2.0], peer=[1.2])
    head, _, *rows = contest.table(own, found)
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "", "ms a step", "ratio", "MiB", "squared error",
    ]  # fmt: skip
    assert "250 " in rows[0]
    assert "(+50)" in rows[0]
    assert "2.00; 1.5: met" in rows[1]
    assert "1.20; 1.5: **missed**" in rows[2]
    assert len({len(row) for row in (head, *rows)}) == 1
    assert contest.missed(own, found) == ["small: 1.20 times peer (refold), not 1.5"]


def test_a_case_names_only_what_takes_part(contest: Any) -> None:
    with pytest.raises(AssertionError):
        case_of(contest, aims={("refold", "nobody"): 1.0})


def test_a_section_is_put_at_the_end_and_replaced_case_by_case(contest: Any) -> None:
    order = ["one", "two"]
    first = contest.merged(DOCUMENT, "## Suite", {"two": "### two\n\nold"}, order)
    assert first.startswith(DOCUMENT.rstrip("\n"))
    more = first + "\n## After\n\nstays\n"
    blocks = {"one": "### one\n\n| x |"}
    second = contest.merged(more, "## Suite, again", blocks, order)
    inside = second.partition(contest.BEGIN)[2].partition(contest.END)[0]
    assert inside == "\n## Suite, again\n\n### one\n\n| x |\n\n### two\n\nold\n\n"
    assert second.startswith(DOCUMENT.rstrip("\n"))
    assert second.endswith(contest.END + "\n\n## After\n\nstays\n")
    assert contest.merged(second, "## Suite, again", {}, order) == second
    gone = contest.merged(second, "## Suite, again", {}, ["two"])
    assert "### one" not in gone
    with pytest.raises(ValueError, match="without"):
        contest.merged("text " + contest.BEGIN, "", {}, order)


class Fake:
    """A contestant's process that needs no time: each has its own seconds."""

    said: ClassVar[list[str]] = []

    def __init__(self, case: str, name: str, quick: bool) -> None:
        self.name = name

    def ready(self) -> float:
        if self.name == "absent":
            raise importlib.import_module("worker").Failed("No module named 'sae_lens'")
        return 100.0

    def lap(self) -> Any:
        contest = importlib.import_module("contest")
        self.said.append(self.name)
        if self.name == "ends" and self.said.count("ends") == 2:
            raise importlib.import_module("worker").Failed("RuntimeError: too much")
        return contest.Lap({"refold": 1.0}.get(self.name, 2.0), contest.Found(), 120.0)

    def ask(self) -> dict[str, float]:
        return {"float32": 100.0, "bfloat16": 400.0}

    def close(self) -> None:
        self.said.append(f"{self.name} closed")


def test_contestants_run_in_turns_and_who_fails_is_named(
    suite: Any, contest: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "Worker", Fake)
    Fake.said.clear()
    never: Any = None
    others = dict.fromkeys(("loop", "ends", "absent"), never)
    own = contest.Case("small", "Three layers.", {"refold": never}, others)
    found = suite.compete(own, 3, True, {"sae-lens": "no wheel"}, Fake("", "peak", True))
    ran = [name for name in Fake.said if "closed" not in name]
    assert ran == ["refold", "loop", "ends", "loop", "ends", "refold", "refold", "loop"]
    assert Fake.said.count("absent closed") == Fake.said.count("ends closed") == 1
    assert found.missing == {
        "absent": "sae-lens could not be installed: no wheel",
        "ends": "RuntimeError: too much",
    }
    assert set(found.laps) == {"refold", "loop"}
    assert found.peaks == {"float32": [100.0] * 3, "bfloat16": [400.0] * 3}
    text = contest.block(own, found, "(today)")
    assert text.startswith("### small\n\nThree layers. (today)\n\n| ")
    assert "Not run: ends: RuntimeError: too much" in text
    assert "round 3 of 3: refold 1.00 s, loop 2.00 s" in capsys.readouterr().out


def test_all_cases_have_refold_in_them_and_names_of_their_own(suite: Any) -> None:
    for quick in (True, False):
        cases = suite.every(quick)
        assert all(own.refold and own.others for own in cases.values())
    assert list(suite.every(True)) == list(cases)  # a worker warms up with the quick one


def test_growth_is_told_against_what_was_aimed_at(suite: Any) -> None:
    growth = suite.growth
    point = {"epoch": 5.0, "row": 6.0, "memory": 30.0, "array": 10.0}
    by_rows = {n: dict(point) for n in (10_000, 100_000, 1_000_000)}
    by_rows[10_000]["row"] = 9.0
    by_columns = {n: {"step": 400.0 + 3.0 * n} for n in (10, 100, 1000)}
    assert growth.line(by_columns) == pytest.approx((400.0, 3.0))
    told = growth.sentence(by_rows, by_columns)
    assert "a row 5.00 microseconds, within 0% (met: 10%)" in told
    assert "6.00, within 0% from 100,000 rows on" in told
    assert "up to 9.00" in told
    assert "400 microseconds and 3.00 for each column, within 0%" in told
    assert "3.0 times the array" in told
    by_rows[1_000_000] |= {"epoch": 6.0, "row": 7.0}
    told = growth.sentence(by_rows, by_columns)
    assert "a row 5.00 microseconds, within 20% (**missed**: 10%)" in told
    assert "within 8% from 100,000" in told


def test_every_peer_is_pinned(suite: Any) -> None:
    assert all("==" in pin for pin in suite.pins().values())
