"""The recommended policy on made-up records: named with its evidence, or refused in one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from planned import variables
from test_performance import run_of
from test_policies_side_by_side import FAST, POOR, SLOW, Made, measured, places_of

from analysis.__main__ import main
from analysis.measure.policies import side_by_side
from analysis.measure.table import tidy
from analysis.model.recommending import Goal, Recommendation, RecommendationError, recommend, regrets
from analysis.plan.data_files import PROJECT
from analysis.plan.design import Design

IDLE = {"idle": 1.0}
THREE = {"idle": 0.0, "constant_fill": 200.0, "random_fill": -50.0}


def recommended(directory: Path, goal: Goal) -> Recommendation:
    return recommend(places_of(directory), IDLE, goal)


def test_the_policy_that_saves_most_is_named_where_the_others_are_worse_beyond_doubt(results: Path) -> None:
    found = recommended(measured(results, {"ksm": FAST, "smart_scan": SLOW, "advisor": POOR}), Goal("memory"))
    assert (found.chosen.policy, found.best.policy) == ("ksm", "ksm")
    assert [one.policy for one in found.candidates] == ["ksm", "smart_scan", "advisor"]
    loss = found.candidates[2].loss
    assert loss is not None
    assert loss.difference.mean == pytest.approx(40)


def test_of_two_that_cannot_be_told_apart_the_cheaper_is_named_with_what_it_may_lose(results: Path) -> None:
    # Paired: +1, -0.8, +1 MB/VM, mean 0.4, whose interval of three boots holds 0
    near = Made((99.0, 101.8, 101.0), cpu_seconds_a_second=0.1, settled_percent=2)
    found = recommended(measured(results, {"ksm": FAST, "smart_scan": near}), Goal("memory"))
    assert (found.best.policy, found.chosen.policy, found.cost) == (
        "ksm",
        "smart_scan",
        "settled_ksmd_percent",
    )
    loss = found.chosen.loss
    assert loss is not None
    assert loss.difference.mean == pytest.approx(0.4)
    assert not loss.apart


def test_without_a_followed_series_the_cost_is_the_cpu_until_settled(results: Path) -> None:
    made = {"ksm": Made((100, 101, 102)), "smart_scan": Made((100, 101, 102), cpu_seconds_a_second=0.1)}
    found = recommended(measured(results, made), Goal("memory"))
    assert (found.chosen.policy, found.cost) == ("smart_scan", "ksmd_cpu_seconds")


def test_a_cpu_budget_leaves_out_what_may_exceed_it(results: Path) -> None:
    directory = measured(results, {"ksm": FAST, "smart_scan": SLOW, "advisor": POOR})
    found = recommended(directory, Goal("cpu", 5))
    assert found.chosen.policy == "smart_scan"
    assert found.excluded == ("ksm takes more than 5 % of a CPU once settled (40.0 ± 0.0 in idle)",)
    with pytest.raises(
        RecommendationError, match=r"^no policy can be recommended: advisor takes more than 0\.5 %"
    ):
        recommended(directory, Goal("cpu", 0.5))


def test_a_latency_limit_leaves_out_what_may_exceed_it_with_its_whole_interval(results: Path) -> None:
    run = run_of(results)
    places = side_by_side(tidy([run]), [run])
    # Beyond what cells under off lost: ksm 17.0 ± 21.7 %; smart_scan 0.9 ± 52.4
    found = recommend(places, IDLE, Goal("latency", latency_percent=50))
    assert found.chosen.policy == "ksm"
    (excluded,) = found.excluded
    assert re.match(
        r"smart_scan may add more than 50 % to the guests' p99 \(0\.9 ± 52\.4 in idle\)", excluded
    )
    with pytest.raises(
        RecommendationError, match=r"^no policy can be recommended: ksm may add more than 35 %"
    ):
        recommend(places, IDLE, Goal("latency", latency_percent=35))


def test_without_cells_under_off_in_each_boot_no_latency_is_one_of_a_policy(results: Path) -> None:
    run = run_of(results, controls=2)
    places = side_by_side(tidy([run]), [run])
    with pytest.raises(
        RecommendationError, match=r"ksm has no cell under off beside it in each boot \(idle\)"
    ):
        recommend(places, IDLE, Goal("latency", latency_percent=1000))


def test_the_soonest_is_the_one_that_has_90_percent_of_the_best_saving_first(results: Path) -> None:
    found = recommended(measured(results, {"ksm": FAST, "smart_scan": SLOW, "advisor": POOR}), Goal("time"))
    assert found.chosen.policy == "ksm"
    assert found.excluded == ("advisor did not come to 90 % of the best saving in every cell (idle)",)


def test_workloads_are_weighted_by_their_guests(results: Path) -> None:
    places = places_of(
        measured(
            results,
            {"ksm": Made((100, 101, 102)), "smart_scan": Made((90, 91, 92))},
            {"idle": 0.0, "constant_fill": 200.0},
        )
    )
    found = recommend(places, {"idle": 3.0, "constant_fill": 1.0}, Goal("memory"))
    # 482 + 8 - 101 for three guests of four, 200 less for the fourth
    assert found.chosen.estimate.mean == pytest.approx(389 * 0.75 + 189 * 0.25)


def test_each_of_three_workloads_is_left_out_of_the_choice_once(results: Path) -> None:
    made = {"ksm": FAST, "smart_scan": SLOW}
    places = places_of(measured(results, made, THREE))
    found = regrets(places, dict.fromkeys(THREE, 1.0), Goal("memory"))
    assert [(one.workload, one.policy, one.best, one.loss) for one in found] == [
        (name, "ksm", "ksm", None) for name in THREE
    ]
    assert regrets(places, dict.fromkeys(("idle", "random_fill"), 1.0), Goal("memory")) == []


def written(results: Path, tmp_path: Path, *words: str) -> tuple[dict[str, Any], list[str]]:
    variables_file, tmpfiles = tmp_path / "ksm.yml", tmp_path / "ksm.conf"
    options = ["--write", str(variables_file), "--tmpfiles", str(tmpfiles)]
    assert main(["recommend", "--results", str(results), *words, *options]) == 0
    lines = [line for line in tmpfiles.read_text().splitlines() if not line.startswith("#")]
    assert variables_file.read_text().startswith("# The KSM policy ")
    return yaml.safe_load(variables_file.read_text()), lines


def test_what_is_written_sets_the_policy_that_was_measured(results: Path, tmp_path: Path) -> None:
    measured(results, {"thp_never": FAST, "smart_scan": POOR})
    content, lines = written(results, tmp_path, "--goal", "memory")
    design = Design.from_variables(variables(**content))
    assert design.policies == ("thp_never",)
    policy = design.policy("thp_never")
    assert (policy.knobs["pages_to_scan"], policy.thp_enabled) == (20000, "never")
    assert lines[:2] == [
        "w /sys/kernel/mm/transparent_hugepage/enabled - - - - never",
        "w /sys/kernel/mm/ksm/advisor_mode - - - - none",
    ]
    assert "w /sys/kernel/mm/ksm/pages_to_scan - - - - 20000" in lines
    assert lines[-1] == "w /sys/kernel/mm/ksm/run - - - - 1"


def test_the_advisor_is_switched_on_when_its_limits_are_set(results: Path, tmp_path: Path) -> None:
    measured(results, {"advisor": FAST, "smart_scan": POOR})
    _content, lines = written(results, tmp_path, "--goal", "time")
    knobs = [line.split()[1].rsplit("/", 1)[1] for line in lines]
    assert knobs[-2:] == ["advisor_mode", "run"]
    assert "pages_to_scan" not in knobs


def test_knobs_laid_over_a_policy_are_in_its_name_and_not_asked_for_twice(
    results: Path, tmp_path: Path
) -> None:
    measured(results, {"ksm+pages_to_scan=300": FAST, "smart_scan": POOR})
    content, lines = written(results, tmp_path, "--goal", "memory")
    assert (
        Design.from_variables(variables(**content)).policy(content["policies"]).knobs["pages_to_scan"] == 300
    )
    assert "w /sys/kernel/mm/ksm/pages_to_scan - - - - 300" in lines


def test_a_service_is_not_written_as_knobs(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(results, {"ksmtuned": FAST, "smart_scan": POOR})
    words = ["recommend", "--results", str(results), "--goal", "memory"]
    assert main([*words, "--tmpfiles", str(tmp_path / "ksm.conf")]) == 2
    assert (
        "ksmtuned runs the service ksmtuned.service, which sets KSM's knobs itself" in capsys.readouterr().err
    )
    assert not (tmp_path / "ksm.conf").exists()
    assert main([*words, "--systemd", str(tmp_path)]) == 2
    assert "in place of --systemd use `systemctl enable --now ksmtuned.service`" in capsys.readouterr().err
    assert main([*words, "--write", str(tmp_path / "ksm.yml")]) == 0
    assert yaml.safe_load((tmp_path / "ksm.yml").read_text()) == {
        "policies": "ksmtuned",
        "thp_enabled": "keep",
    }


def units(results: Path, folder: Path) -> dict[str, str]:
    folder.mkdir()
    words = ["recommend", "--results", str(results), "--goal", "memory", "--systemd", str(folder)]
    assert main(words) == 0
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_unit_sets_the_policy_in_an_order_that_the_kernel_takes(results: Path, tmp_path: Path) -> None:
    measured(results, {"thp_never": FAST, "smart_scan": POOR})
    (name, text) = units(results, tmp_path / "units").popitem()
    assert name == "ksm-policy.service"
    writes = [line for line in text.splitlines() if line.startswith("ExecStart")]
    assert writes[:2] == [
        "ExecStart=-/bin/sh -c 'echo never > /sys/kernel/mm/transparent_hugepage/enabled'",
        "ExecStart=-/bin/sh -c 'echo none > /sys/kernel/mm/ksm/advisor_mode'",
    ]
    assert writes[-1] == "ExecStart=-/bin/sh -c 'echo 1 > /sys/kernel/mm/ksm/run'"
    assert "Type=oneshot" in text


def test_the_daemon_is_written_with_its_unit_which_leaves_its_knobs_to_it(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(results, {"pacer": FAST, "smart_scan": POOR})
    files = units(results, tmp_path / "units")
    assert files["ksm-pacer"] == (PROJECT / "plugins/module_utils/ksm_pacer.py").read_text()
    assert [line for line in files["ksm-pacer.service"].splitlines() if line.startswith("ExecStart")] == [
        "ExecStartPre=-/bin/sh -c 'echo 256 > /sys/kernel/mm/ksm/max_page_sharing'",
        "ExecStartPre=-/bin/sh -c 'echo 0 > /sys/kernel/mm/ksm/use_zero_pages'",
        "ExecStart=/usr/bin/python3 -B /usr/local/sbin/ksm-pacer --start",
    ]
    words = ["recommend", "--results", str(results), "--goal", "memory", "--tmpfiles", str(tmp_path / "c")]
    assert main(words) == 2
    assert "ksm-pacer is a daemon that sets KSM's knobs itself: in place of --tmpfiles use --systemd." in (
        capsys.readouterr().err
    )


def test_the_command_says_what_it_recommends_on_what_evidence_and_what_it_would_have_lost(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = Made((99.0, 101.8, 101.0), cpu_seconds_a_second=0.1, settled_percent=2)
    measured(results, {"ksm": FAST, "smart_scan": near, "advisor": POOR}, THREE)
    assert main(["recommend", "--results", str(results), "--goal", "memory"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Recommended: smart_scan For most memory, 2 guests of 512 MB on host1: 1 idle, 2 constant" in text
    assert "It may lose up to 3.0 MB/VM." in text
    assert "It cannot be told apart from ksm, the best by its mean: +0.4 ± 2.6 MB/VM" in text
    assert "ksmd, settled 2.0 ± 0.0 % of a CPU in place of 40.0 ± 0.0" in text
    assert "Each workload left out of the choice once" in text
    assert main(["recommend", "--results", str(results), "--goal", "memory", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["policy"], content["best"]) == ("smart_scan", "ksm")
    assert [one["policy"] for one in content["regrets"]] == ["smart_scan"] * 3


@pytest.mark.parametrize(
    ("made", "words", "said"),
    [
        (
            {"ksm": FAST},
            ["memory"],
            "needs two policies that were measured in each of idle, and the records have ksm",
        ),
        (
            {"ksm": Made((1, 2)), "advisor": Made((1, 2))},
            ["memory"],
            "advisor has 2 boots in common to its workloads, and nothing follows from fewer than 3",
        ),
        ({"ksm": FAST}, ["latency"], "--latency-percent is missing: --goal latency needs a number above 0"),
        (
            {"ksm": FAST},
            ["memory", "--latency-percent", "5"],
            "--latency-percent is a limit of --goal latency, and the goal is memory",
        ),
        (
            {"ksm": Made((1, 2, 3)), "advisor": Made((1, 2, 3))},
            ["latency", "--latency-percent", "5"],
            "was not probed (idle): measure with -e policies=off,... -e probes=5",
        ),
        ({"ksm": FAST}, ["cpu"], "--cpu-percent is missing: --goal cpu needs a number"),
        (
            {"ksm": FAST},
            ["cpu", "--cpu-percent", "0"],
            "--cpu-percent is 0: --goal cpu needs a number above 0",
        ),
        ({"ksm": FAST}, ["memory", "--cpu-percent", "5"], "is a limit of --goal cpu, and the goal is memory"),
        (
            {"ksm": Made((1, 2, 3)), "advisor": Made((1, 2, 3))},
            ["cpu", "--cpu-percent", "5"],
            "was not followed once settled (idle): measure with -e follow_seconds=120",
        ),
        ({"ksm": FAST}, ["memory", "--guests", "9"], "--guests is 9: measured were 2"),
        (
            {"ksm": FAST},
            ["memory", "--workloads", "web"],
            "--workloads has web: measured from checkpoints were idle",
        ),
        (
            {"ksm": FAST},
            ["memory", "--workloads", "idle=0,web=1"],
            "--workloads is 'idle=0,web=1': allowed is",
        ),
    ],
)
def test_what_the_records_cannot_carry_is_refused_in_one_sentence(
    results: Path, capsys: pytest.CaptureFixture[str], made: dict[str, Made], words: list[str], said: str
) -> None:
    measured(results, made)
    assert main(["recommend", "--results", str(results), "--goal", *words]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert said in refused.err
    assert refused.err.count("\n") == 1
