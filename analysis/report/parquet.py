"""The tidy table as Parquet, by pyarrow: an extra, for it weighs 55 MB."""

import io
from pathlib import Path

import pandas as pd

from analysis.errors import UserError


class ParquetError(UserError):
    """A table that cannot be stored."""


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Store the tidy table, one row for each planned cell. Raises ParquetError without pyarrow."""
    stored = io.BytesIO()
    try:
        table.to_parquet(stored, engine="pyarrow", index=False)
    except ImportError:
        raise ParquetError(
            "--parquet needs pyarrow, which is not installed: `pip install -e '.[parquet]'`, or take --csv."
        ) from None
    path.write_bytes(stored.getvalue())
