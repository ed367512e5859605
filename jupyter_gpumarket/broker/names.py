"""Names for nodes that people can say: `calm-otter`. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Set as AbstractSet

from jupyter_gpumarket.api.requests import InvalidField

_ADJECTIVES = (
    "able amber brave brisk calm clear cosy deft early eager fair fleet fond frank fresh gentle glad golden grand "
    "handy hardy jolly keen kind lively lucky mellow merry mild neat noble proud quick quiet ready royal sharp "
    "silent smart snug solid sunny swift tidy true vivid warm wise witty"
)
_ANIMALS = (
    "auk badger bat bear beaver bee bison crane crow deer dove duck eagle eel elk falcon finch fox frog gecko "
    "goat goose gull hare hawk heron ibex ibis jay kite koala lark lemur lion lynx marten mole moose moth newt "
    "orca oriole otter owl panda perch pike puffin quail raven robin salmon seal shrew stoat stork swan swift "
    "tapir tern toad trout vole weasel whale wolf wren yak"
)
ADJECTIVES, ANIMALS = _ADJECTIVES.split(), _ANIMALS.split()
FITS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def fresh(taken: AbstractSet[str], rng: random.Random) -> str:
    """A name that no open lease has."""
    for _ in range(100):
        name = f"{rng.choice(ADJECTIVES)}-{rng.choice(ANIMALS)}"
        if name not in taken:
            return name
    return f"{name}-{len(taken)}"


def checked(name: str, taken: AbstractSet[str]) -> str:
    """A name that somebody chose.

    Raises:
        InvalidField: not a plain name, or an open lease has it.
    """
    if not FITS.fullmatch(name):
        raise InvalidField(
            f"the name {name[:60]!r} must start with a letter or digit and hold only those, '-', '_' and '.', "
            "at most 40 in all",
            name="name",
        )
    if name in taken:
        raise InvalidField(f"a node called {name} is open; choose another name, or use that one", name="name")
    return name
