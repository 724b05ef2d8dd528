"""An application that guests run: the commands of one file of workloads/, checked."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from plugins.module_utils import names


def _figure(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    if groups != 1:
        raise ValueError(f"{pattern!r} must have one group, in parentheses, that is the number")
    return pattern


def _package(name: str) -> str:
    return names.check("a package", name, names.PACKAGE)


def _listed(value: Any) -> Any:
    """YAML has lists, and a strict model takes tuples alone."""
    return tuple(value) if isinstance(value, list) else value


# What a shell in the guest runs, as root
Command = Annotated[str, Field(min_length=1, max_length=16_384)]
Packages = Annotated[tuple[Annotated[str, AfterValidator(_package)], ...], BeforeValidator(_listed)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Performance(_Model):
    """The application's own figure: ``command`` prints it, and the one group of ``figure`` finds it there."""

    command: Command
    figure: Annotated[str, AfterValidator(_figure)]
    unit: Annotated[str, Field(min_length=1, max_length=64)]


class Application(_Model):
    """What a guest runs.

    ``packages``: Debian packages that its image must have. ``start`` returns once the services are started,
    ``ready`` succeeds once they answer, which is tried for ``ready_seconds``. ``load`` gives them their data.
    ``verify`` fails, or prints something else than before, where data was lost. Each of the others may take
    ``timeout_seconds``.
    """

    packages: Packages = ()
    start: Command
    ready: Command
    load: Command | None = None
    verify: Command
    performance: Performance | None = None
    ready_seconds: Annotated[int, Field(ge=1, le=3600)] = 180
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 600

    def to_json(self) -> dict[str, Any]:
        """As a plan holds it and the module application takes it."""
        return self.model_dump(mode="json")


KEYS = frozenset(Application.model_fields)


class ApplicationError(Exception):
    """Commands that are none; the text is one sentence without its full stop."""


def read_application(content: Mapping[str, Any]) -> Application | None:
    """The application in the content of a workload's file; None where it has none of its keys.

    Raises ApplicationError.
    """
    given = {name: value for name, value in content.items() if name in KEYS}
    if not given:
        return None
    try:
        return Application.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ApplicationError(f"an application needs {place}") from None
        raise ApplicationError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
