"""placement.json: what machines of several hosts have in common, counted from sketches that are gone."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from analysis.records.models import Count, Model, Positive, Text, Timestamp, Version

FILE = "placement.json"
KIND = "placement"


class PlacedMachine(Model):
    """A machine; ``contents`` of it were in its sketch.

    ``shared``: how many of them another machine of each host has, in the order of the record's hosts.
    """

    hypervisor: Text
    pid: Positive
    contents: Count
    shared: tuple[Count, ...]


class PlacementRecord(Model):
    """placement.json of a survey of several hosts; one of ``one_in`` contents was in the sketches."""

    schema_version: Version
    kind: Literal["placement"]
    run_id: Text
    recorded_at: Timestamp
    one_in: Positive
    hypervisors: Annotated[tuple[Text, ...], Field(min_length=2)]
    machines: tuple[PlacedMachine, ...]

    @model_validator(mode="after")
    def _machines_are_of_its_hosts(self) -> Self:
        for machine in self.machines:
            if machine.hypervisor not in self.hypervisors:
                raise ValueError(f"it has a machine of {machine.hypervisor}, which is no host of it")
            if len(machine.shared) != len(self.hypervisors) or max(machine.shared) > machine.contents:
                raise ValueError(
                    f"process {machine.pid} shares with other hosts than it has, or more than it has"
                )
        return self
