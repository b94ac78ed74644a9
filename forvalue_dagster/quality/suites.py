"""Suites of expectations: the default one for finetuning rows, and the user's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from forvalue_dagster.quality.row_facts import PERSONAL

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

MAX_RESPONSE_CHARACTERS = 200_000
_CANONICAL = ("sample_id", "shard", "row", "problem")
_ROLES = r"^(?:system,|developer,)?user,(?:(?:user|assistant|tool),)*assistant$"


def default_suite() -> ExpectationSuite:
    """Return the default suite; its critical expectations block rows."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    import great_expectations as gx
    import great_expectations.expectations as gxe

    critical = [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(_CANONICAL), exact_match=False),
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectColumnValuesToBeInTypeList(column="row", type_list=["int64"]),
        gxe.ExpectColumnValuesToNotBeNull(column="sample_id", mostly=0.99),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["shard", "row"]),
        gxe.ExpectColumnValuesToBeNull(column="problem", mostly=0.99),
        gxe.ExpectColumnValuesToBeBetween(column="response_characters", min_value=1, mostly=0.99),
    ]
    warning = [
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        gxe.ExpectColumnValuesToBeBetween(
            column="response_characters", max_value=MAX_RESPONSE_CHARACTERS
        ),
        gxe.ExpectColumnValuesToBeBetween(column="prompt_characters", min_value=1, mostly=0.99),
        gxe.ExpectColumnValuesToMatchRegex(column="roles", regex=_ROLES, mostly=0.99),
        gxe.ExpectColumnValuesToBeBetween(column="broken_characters", max_value=0, mostly=0.99),
        gxe.ExpectColumnValuesToBeBetween(column="missing_images", max_value=0, mostly=0.99),
        gxe.ExpectColumnValuesToBeBetween(column="letters_share", min_value=0.3, mostly=0.95),
        *(
            gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[False], mostly=0.99)
            for name in PERSONAL
        ),
    ]
    for expectation in critical:
        expectation.severity = "critical"
    for expectation in warning:
        expectation.severity = "warning"
    return gx.ExpectationSuite(name="forvalue_rows", expectations=[*critical, *warning])


def read_suite(path: str | Path) -> ExpectationSuite:
    """Read a suite from the JSON that Great Expectations writes.

    Raises:
        ValueError: if the file holds no suite; the message names the file.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    import great_expectations as gx

    try:
        plain = json.loads(Path(path).read_text("utf-8"))
        return gx.ExpectationSuite(
            name=plain["name"],
            expectations=plain["expectations"],
            meta=plain.get("meta"),
            notes=plain.get("notes"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no suite of Great Expectations: {error}. Expected JSON with 'name' and "
            "'expectations', as a suite's to_json_dict() gives."
        ) from error
