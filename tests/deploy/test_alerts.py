"""The files of deploy/prometheus, by promtool: rules fire on made-up series (alerts.yaml) when they
should and not else, and each alert is explained."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from demo.service import ROOT
from tests.deploy.prometheus import CONFIG, RULES, alerts, promtool

UNIT_TESTS = ROOT / "tests" / "deploy" / "alerts.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"


def test_the_files_are_what_prometheus_takes() -> None:
    promtool("check", "config", str(CONFIG))
    promtool("check", "rules", str(RULES))


def test_alerts_fire_when_they_should_and_not_else() -> None:
    promtool("test", "rules", str(UNIT_TESTS))


def wrong() -> Iterator[tuple[str, str, str]]:
    """Rules with one threshold or time half or twice as large: what was changed, the alert, and all
    of them."""
    text = RULES.read_text()
    for found in re.finditer(r"for: (\d+)m|(?:>=? |vector\()([\d.]+)", text):
        rule = re.findall(r"- (?:alert|record): (\S+)", text[: found.start()])[-1]
        (alert,) = {rule} & alerts().keys() or {n for n, r in alerts().items() if rule in r["expr"]}
        for factor in (0.5, 2):
            if found[1]:
                changed = f"for: {int(found[1]) * factor * 60:g}s"
            else:
                changed = found[0].removesuffix(found[2]) + f"{float(found[2]) * factor:g}"
            if float(found[1] or found[2]):
                parts = text[: found.start()], changed, text[found.end() :]
                yield f"{rule}: {found[0]}, not {changed}", alert, "".join(parts)


WRONG = {what: (alert, text) for what, alert, text in wrong()}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_threshold_or_time_is_noticed(what: str, tmp_path: Path) -> None:
    alert, text = WRONG[what]
    (tmp_path / "rules.yaml").write_text(text)
    promtool("check", "rules", str(tmp_path / "rules.yaml"))
    cases = yaml.safe_load(UNIT_TESTS.read_text())
    cases["rule_files"] = ["rules.yaml"]
    cases["tests"] = [
        test
        for test in cases["tests"]
        if any(f'alertname="{alert}"' in case["expr"] for case in test["promql_expr_test"])
    ]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(cases))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", str(tmp_path / "alerts.yaml"))


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    cases = [case for test in tests for case in test["promql_expr_test"]]
    for name in alerts():
        of_it = [case for case in cases if f'alertname="{name}"' in case["expr"]]
        assert any(case["exp_samples"] for case in of_it), f"{name} never fires"
        assert any(not case["exp_samples"] for case in of_it), f"{name} always fires"


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_it_is_and_where_that_is_explained(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert f"\n## {name}\n" in RUNBOOK.read_text()


def test_the_runbook_explains_no_other_alerts() -> None:
    explained = {line[3:] for line in RUNBOOK.read_text().splitlines() if line.startswith("## Tcd")}
    assert explained == alerts().keys()
