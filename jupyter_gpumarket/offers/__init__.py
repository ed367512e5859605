"""Offers of all marketplaces: collected, named alike, filtered, ranked, and how their prices were."""

from __future__ import annotations

from jupyter_gpumarket.offers.catalogue import Catalogue
from jupyter_gpumarket.offers.grammar import parse
from jupyter_gpumarket.offers.history import PriceBook, sample_points, summed_up
from jupyter_gpumarket.offers.records import own_records

__all__ = ["Catalogue", "PriceBook", "own_records", "parse", "sample_points", "summed_up"]
