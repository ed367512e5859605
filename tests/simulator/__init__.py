"""Tests of the stand-ins for marketplaces."""
