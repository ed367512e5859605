"""What everything costs, to the nano-dollar: charges, budgets, reports, reconciliation. No I/O but in `export`."""

from __future__ import annotations

from jupyter_gpumarket.ledger.budgets import Cut, cuts, refuse_lease, refuse_run, verdict, views
from jupyter_gpumarket.ledger.charges import lease_charges, lease_money, run_cost, run_costs, worst_case_nusd
from jupyter_gpumarket.ledger.reconcile import reconcile

__all__ = [
    "Cut",
    "cuts",
    "lease_charges",
    "lease_money",
    "reconcile",
    "refuse_lease",
    "refuse_run",
    "run_cost",
    "run_costs",
    "verdict",
    "views",
    "worst_case_nusd",
]
