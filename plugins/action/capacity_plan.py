"""Plan a capacity run on the controller: check every variable, name the run; nothing is written."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from analysis.errors import UserError
from analysis.plan import disk, proof
from analysis.plan.capacity_design import CAPACITY_VARIABLES, arms, check_variables
from analysis.plan.design import MIB, VARIABLES, DesignError, check_hypervisors, check_run_id, new_run_id
from analysis.plan.variables import play_variables

DOCUMENTATION = r"""
name: capacity_plan
short_description: Check the variables of a capacity run
description:
  - Runs on the controller only and writes nothing.
options:
  experiment:
    description: >-
      Every variable of the experiment, those that choose its cells are not looked at; the play's own where it
      is left out, as the other options.
    type: dict
  capacity: {description: Every capacity_ variable, type: dict}
  overhead_mib: {description: "host memory of one QEMU besides its guest's", type: int, default: 160}
  directory: {description: Directory of all results, type: path}
  run_id: {description: Name of the run; empty for the UTC time, type: str}
  forecast: {description: "Files of the forecasts of its limits, with commas between", type: str}
  hypervisors: {description: The hosts; the group hypervisors where it is left out, type: list, elements: str}
attributes:
  check_mode:
    support: full
"""

RETURN = r"""
run_id: {description: Name of the run, type: str, returned: success}
directory: {description: Absolute path of the run's directory, type: str, returned: success}
capacity: {description: "The capacity_ variables, typed, without their prefix", type: dict, returned: success}
design: {description: The experiment's variables, typed, type: dict, returned: success}
forecasts:
  description: Name, time and SHA-256 of each forecast that the run names.
  type: list
  elements: dict
  returned: success
arms:
  description: Boot and policy of each arm, of each boot off first.
  type: list
  elements: dict
  returned: success
policies: {description: "Each arm's policy by its name, as plan has it", type: dict, returned: success}
workloads: {description: "The workload by its name, as plan has it", type: dict, returned: success}
envelope_bytes: {description: What the guests have to fit in; null for the host, type: int, returned: success}
limit_bytes: {description: Hard limit of the envelope's cgroup, type: int, returned: success}
guest_memory_bytes: {description: Memory of one guest, type: int, returned: success}
full_guest_bytes: {description: What a guest may take that shares nothing, type: int, returned: success}
most_guests: {description: The most that are started, type: int, returned: success}
most_steps: {description: The steps that the longest arm has, type: int, returned: success}
disk_needs: {description: "What is to be stored, by host, as plan has it", type: dict, returned: success}
created_at: {description: The UTC time of this plan, type: str, returned: success}
design_digest: {description: SHA-256 of what the run measures, type: str, returned: success}
"""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller-side action; see DOCUMENTATION."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Plan the run."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            argument_spec={
                "experiment": {"type": "dict"},
                "capacity": {"type": "dict"},
                "overhead_mib": {"type": "int", "default": 160},
                "directory": {"type": "path"},
                "run_id": {"type": "str"},
                "forecast": {"type": "str"},
                "hypervisors": {"type": "list", "elements": "str"},
            }
        )
        beside = (*disk.FOLDERS, "results_directory", "run_id", proof.VARIABLE)
        given = play_variables(self, task_vars or {}, (*VARIABLES, *CAPACITY_VARIABLES, *beside))
        group = (task_vars or {}).get("groups", {}).get("hypervisors", [])
        hosts = [str(host) for host in arguments["hypervisors"] or group]
        results = arguments["directory"] or given.get("results_directory", "results")
        try:
            capacity, design = check_variables(
                arguments["capacity"] or {name: given.get(name) for name in CAPACITY_VARIABLES},
                arguments["experiment"] or {name: given.get(name) for name in VARIABLES},
            )
            check_hypervisors(hosts)
            policies = arms(design)
            boots = range(design.first_boot, design.first_boot + design.boots)
            run_id = check_run_id(str(arguments["run_id"] or given.get("run_id") or "") or new_run_id())
            directory = Path(results).expanduser().absolute() / "capacity" / run_id
            limit_bytes = capacity.limit_bytes(design, arguments["overhead_mib"])
            forecasts = proof.given_forecasts(arguments["forecast"] or given.get(proof.VARIABLE, ""))
            proof.check_capacity(
                forecasts,
                workload=capacity.workload,
                policy=capacity.policy,
                envelope_bytes=capacity.envelope_bytes,
                guest_memory_bytes=design.guest_memory_mib * MIB,
                hypervisors=hosts,
            )
            if directory.exists():
                raise DesignError(f"run_id {run_id} exists as {directory}: give another run_id.")
            steps = design.boots * len(policies) * capacity.most_steps
            records = disk.records_need(steps * max(1, len(hosts)), design.to_json(), str(directory))
            disk.check_records([records])
        except UserError as error:
            result.update(failed=True, msg=str(error))
            return result
        created_at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        most = capacity.most_guests
        kept = [disk.Kept(boot, most) for boot in boots]
        result.update(
            changed=False,
            disk_needs={
                host: [
                    *disk.host_needs(kept, most, design.to_json(), created_at, given),
                    *([records] if disk.is_local(task_vars or {}, host) else []),
                ]
                for host in hosts
            },
            run_id=run_id,
            directory=str(directory),
            capacity=asdict(capacity),
            design=design.to_json(),
            forecasts=[one.to_json() for one in proof.named(forecasts)],
            arms=[{"boot": boot, "policy": policy} for boot in boots for policy in policies],
            policies=policies,
            workloads=design.workloads_json(),
            envelope_bytes=capacity.envelope_bytes,
            limit_bytes=limit_bytes,
            guest_memory_bytes=design.guest_memory_mib * MIB,
            full_guest_bytes=(design.guest_memory_mib + arguments["overhead_mib"]) * MIB,
            most_guests=capacity.most_guests,
            most_steps=capacity.most_steps,
            created_at=created_at,
            design_digest=capacity.digest(design),
        )
        return result
