"""Reports as files: CSV, Parquet, HTML, and the columns of FOCUS (the FinOps cost format, version 1.2).

Names in a report come from strangers too (a marketplace's GPU and machine names), so HTML is escaped, and CSV text
that a spreadsheet would run as a formula is defused.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import polars as pl

import jupyter_gpumarket
from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.ledger.reports import by, frame
from jupyter_gpumarket.models import Charge, ChargeKind
from jupyter_gpumarket.money import format_usd

Format = Literal["csv", "parquet", "html", "json"]

# A spreadsheet takes a cell that starts so as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write(lines: pl.DataFrame, path: Path) -> None:
    """Write a frame in the format that the file's ending names.

    Raises:
        BadRequest: the ending is none of .csv, .parquet, .html, .json.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        lines.write_parquet(path)
    elif ending == ".csv":
        path.write_text(csv_text(lines), encoding="utf-8", newline="")
    elif ending in (".html", ".htm"):
        path.write_text(html_text(lines), encoding="utf-8")
    elif ending == ".json":
        path.write_text(lines.write_json(), encoding="utf-8")
    else:
        raise BadRequest(f"cannot write {path.name}: choose a name that ends in .csv, .parquet, .html or .json")


def content(charges: Iterable[Charge], wanted: str, *, since_ms: int, until_ms: int) -> bytes:
    """The lines of a span, split at midnight UTC, as the bytes of a csv, parquet or html file.

    Raises:
        BadRequest: `wanted` is none of these.
    """
    if wanted not in ("csv", "parquet", "html"):
        raise BadRequest(f"costs can be written as csv, parquet or html, not as {wanted[:40]!r}")
    start, end = (datetime.fromtimestamp(ms / 1000, tz=UTC) for ms in (since_ms, until_ms))
    lines = frame(charges).filter((pl.col("end") > start) & (pl.col("start") <= end))
    if wanted == "parquet":
        buffer = io.BytesIO()
        lines.write_parquet(buffer)
        return buffer.getvalue()
    return (csv_text(lines) if wanted == "csv" else html_text(lines)).encode()


def csv_text(lines: pl.DataFrame) -> str:
    """CSV with a header. Text that would be a formula gets a leading apostrophe."""
    return lines.with_columns(pl.col(pl.String).map_elements(_defused, return_dtype=pl.String)).write_csv()


def _defused(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


_STYLE = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:2px 8px;border-bottom:1px solid #ccc;text-align:left}td.n{text-align:right}"
)


def html_text(lines: pl.DataFrame, title: str = "Costs") -> str:
    """A page of its own: the total, a table of sums by kind where there are kinds, and the lines."""
    total = format_usd(int(lines["amount_nusd"].sum())) if "amount_nusd" in lines.columns else ""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p>Total: <strong>{html.escape(total)}</strong></p>",
    ]
    if "kind" in lines.columns and "start" in lines.columns:
        parts.append(_table(by(lines, "kind"), "By kind"))
    parts += [_table(lines, "Lines"), "</html>"]
    return "\n".join(parts)


def _table(lines: pl.DataFrame, caption: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in lines.columns)
    rows = "\n".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in lines.iter_rows())
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _cell(value: Any) -> str:
    kind = "" if isinstance(value, str | bool) else ' class="n"'
    return f"<td{kind}>{html.escape('' if value is None else str(value))}</td>"


# FOCUS tells what is paid for by category; BOOT and IDLE are usage that nobody used, kept apart by a tag.
_CATEGORIES = {ChargeKind.FEE: "Purchase", ChargeKind.ADJUSTMENT: "Adjustment"}
_SERVICE_CATEGORIES = {ChargeKind.STORAGE: "Storage", ChargeKind.TRAFFIC: "Networking"}


def focus(charges: Iterable[Charge]) -> pl.DataFrame:
    """Charges in the columns of FOCUS 1.2; our own words are in `Tags` and in columns that start with `x_`."""
    rows = [_focus_row(charge) for charge in charges]
    return pl.DataFrame(rows, schema=FOCUS_SCHEMA, infer_schema_length=None)


_MONEY = pl.Decimal(38, 9)
FOCUS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "BilledCost": _MONEY,
    "EffectiveCost": _MONEY,
    "ListCost": _MONEY,
    "ContractedCost": _MONEY,
    "BillingCurrency": pl.String,
    "BillingAccountId": pl.String,
    "BillingPeriodStart": pl.String,
    "BillingPeriodEnd": pl.String,
    "ChargePeriodStart": pl.String,
    "ChargePeriodEnd": pl.String,
    "ChargeCategory": pl.String,
    "ChargeClass": pl.String,
    "ChargeDescription": pl.String,
    "ChargeFrequency": pl.String,
    "ConsumedQuantity": _MONEY,
    "ConsumedUnit": pl.String,
    "PricingQuantity": _MONEY,
    "PricingUnit": pl.String,
    "ListUnitPrice": _MONEY,
    "ContractedUnitPrice": _MONEY,
    "PricingCategory": pl.String,
    "ProviderName": pl.String,
    "PublisherName": pl.String,
    "InvoiceIssuerName": pl.String,
    "ServiceName": pl.String,
    "ServiceCategory": pl.String,
    "ResourceId": pl.String,
    "ResourceName": pl.String,
    "ResourceType": pl.String,
    "SkuId": pl.String,
    "SubAccountId": pl.String,
    "SubAccountName": pl.String,
    "Tags": pl.String,
    "x_ChargeId": pl.String,
    "x_Kind": pl.String,
    "x_Final": pl.Boolean,
}


def _focus_row(charge: Charge) -> dict[str, Any]:
    cost = _decimal(charge.amount_nusd)
    period_start, period_end = _month(charge.start_ms)
    usage = charge.kind not in _CATEGORIES
    # Hours with nine places, rounded down: of the time, not of the money.
    hours = _decimal((charge.end_ms - charge.start_ms) * 1_000_000_000 // 3_600_000) if usage else None
    price = _decimal(charge.rate_nusd_hour) if usage else None
    owner = charge.owner
    tags = {"user": owner.user, "project": owner.project, "notebook": owner.notebook, "run": charge.run_id}
    return {
        **dict.fromkeys(("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"), cost),
        "BillingCurrency": "USD",
        "BillingAccountId": charge.marketplace,
        "BillingPeriodStart": period_start,
        "BillingPeriodEnd": period_end,
        "ChargePeriodStart": iso_utc(charge.start_ms),
        "ChargePeriodEnd": iso_utc(charge.end_ms),
        "ChargeCategory": _CATEGORIES.get(charge.kind, "Usage"),
        "ChargeClass": None,
        "ChargeDescription": f"{charge.kind} on {charge.gpu_count} x {charge.gpu or 'CPU'}",
        "ChargeFrequency": "Usage-Based" if usage else "One-Time",
        **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), hours),
        **dict.fromkeys(("ConsumedUnit", "PricingUnit"), "Hours" if usage else None),
        **dict.fromkeys(("ListUnitPrice", "ContractedUnitPrice"), price),
        "PricingCategory": "Standard" if usage else "Other",
        **dict.fromkeys(("ProviderName", "PublisherName", "InvoiceIssuerName"), charge.marketplace),
        "ServiceName": "GPU rental",
        "ServiceCategory": _SERVICE_CATEGORIES.get(charge.kind, "Compute"),
        "ResourceId": charge.lease_id,
        "ResourceName": charge.machine_id,
        "ResourceType": "Node",
        "SkuId": charge.gpu,
        "SubAccountId": owner.project or None,
        "SubAccountName": owner.project or None,
        "Tags": json.dumps(
            {key: value for key, value in tags.items() if value}
            | {"kind": str(charge.kind), "tool": f"jupyter_gpumarket {jupyter_gpumarket.__version__}"},
            sort_keys=True,
        ),
        "x_ChargeId": charge.charge_id,
        "x_Kind": str(charge.kind),
        "x_Final": charge.final,
    }


def _decimal(nano: int) -> Decimal:
    return Decimal(nano).scaleb(-9)


def _month(at_ms: int) -> tuple[str, str]:
    start = datetime.fromtimestamp(at_ms / 1000, tz=UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    year, month = (start.year + 1, 1) if start.month == 12 else (start.year, start.month + 1)
    return f"{start:%Y-%m-%dT%H:%M:%SZ}", f"{start.replace(year=year, month=month):%Y-%m-%dT%H:%M:%SZ}"
