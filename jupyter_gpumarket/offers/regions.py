"""Places: "EU" means every country of Europe, not every name with these two letters in it."""

from __future__ import annotations

_EUROPEAN_UNION = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"
_COUNTRIES = {
    "EU": f"{_EUROPEAN_UNION} AL BA CH GB IS LI MC MD ME MK NO RS UA UK XK",
    "NA": "CA MX US",
    "SA": "AR BO BR CL CO EC GY PE PY SR UY VE",
    "ASIA": "AE AM AZ BD BH CN GE HK ID IL IN IQ IR JO JP KG KH KR KW KZ LA LB LK MM MN MO MY NP OM PH PK QA SA SG TH "
    "TJ TM TR TW UZ VN YE",
    "AFRICA": "AO DZ EG ET GH KE MA MU NA NG RW SN TN TZ UG ZA ZM ZW",
    "OCEANIA": "AU FJ NZ PG",
}
_NAMES = {
    "EU": "EU",
    "EUROPE": "EU",
    "NA": "NA",
    "NORTH AMERICA": "NA",
    "SOUTH AMERICA": "SA",
    "ASIA": "ASIA",
    "AFRICA": "AFRICA",
    "OCEANIA": "OCEANIA",
}


def countries(place: str) -> tuple[str, ...] | None:
    """The countries' two letters of a part of the world such as "EU"; None where the word is no such part.

    "EU" means Europe as marketplaces use the word: with Norway, Switzerland and the United Kingdom. "GDPR" or another
    law's area is not meant.
    """
    name = _NAMES.get(place.strip().upper())
    return None if name is None else tuple(_COUNTRIES[name].split())


def prefixes(place: str) -> tuple[str, ...]:
    """How regions of that part of the world begin where only a data centre's name is told, such as "eu-west-1"."""
    name = _NAMES.get(place.strip().upper(), "")
    return {"EU": ("eu-", "eu ", "europe"), "NA": ("us-", "us ", "ca-", "north america")}.get(name, ())
