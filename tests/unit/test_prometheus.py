"""The textfile for node_exporter, read by Prometheus' own parser."""

import json
import stat
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from synthetic_survey import survey_record

from analysis.__main__ import main
from analysis.records.survey import SurveyRecord
from analysis.report.prometheus import exposition

PAGE = 4096


def samples(text: str) -> dict[str, dict[str, float]]:
    """Value of each metric by host; a host stands once in each."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in {"gauge", "counter"}
        for sample in family.samples:
            assert set(sample.labels) == {"host"}
            assert sample.labels["host"] not in found.setdefault(sample.name, {})
            found[sample.name][sample.labels["host"]] = sample.value
    return found


def record(**given: object) -> SurveyRecord:
    return SurveyRecord.model_validate_json(json.dumps(survey_record(**given)))


def test_prometheus_own_parser_reads_what_each_host_saves_in_bytes() -> None:
    equal = {"a": [7] * 512, "b": [7] * 512}
    some = record(
        machines=equal, hypervisor="host1", ksm={"pages_sharing": 300, "run": 1, "general_profit": -64}
    )
    text = exposition([some, record(machines=equal, hypervisor='od"d\\', census=False)])
    found = samples(text)
    # 1024 equal pages need 4 frames of 256.
    assert found["ksm_survey_ideal_saving_bytes"] == {"host1": 1020 * PAGE}
    assert found["ksm_saved_bytes"] == {"host1": 300 * PAGE, 'od"d\\': 0}
    assert found["ksm_general_profit_bytes"]["host1"] == -64
    assert found["ksm_ksmd_cpu_seconds_total"]["host1"] == 4
    assert found["ksm_running"] == {"host1": 1, 'od"d\\': 0}
    assert found["ksm_survey_timestamp_seconds"]["host1"] == 1795460400.123456
    assert text.endswith("\n") and "NaN" not in text


def test_of_a_host_that_was_surveyed_twice_the_newest_stands(tmp_path: Path) -> None:
    old, new = (record(machines={"a": [7] * 9}, ksm={"pages_sharing": number}) for number in (1, 2))
    newer = new.model_copy(update={"recorded_at": "2026-11-24T00:00:00.000000Z"})
    assert samples(exposition([newer, old]))["ksm_saved_bytes"] == {"host1": 2 * PAGE}


def test_the_file_is_whole_and_for_everybody_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "results/run/host1/survey.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(survey_record({"a": [7] * 9})))
    path = tmp_path / "ksm.prom"
    path.write_text("old")
    arguments = ["survey", "--results", str(tmp_path / "results"), "--prometheus"]
    assert main([*arguments, str(path)]) == 0
    assert samples(path.read_text())["ksm_survey_machines"] == {"host1": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ksm.prom", "results"]
    assert main([*arguments, str(tmp_path / "ksm.txt")]) == 2
    assert "files that end in .prom alone" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "nowhere/ksm.prom")]) == 2
    assert "cannot write" in capsys.readouterr().err
