"""The composition root: which real parts the broker is made of. The only place that knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jupyter_gpumarket import config
from jupyter_gpumarket.broker.alerts import Alerts
from jupyter_gpumarket.broker.books import Books
from jupyter_gpumarket.broker.closing import Closing
from jupyter_gpumarket.broker.clusters import Clusters
from jupyter_gpumarket.broker.facts import FactIntake
from jupyter_gpumarket.broker.groups import Groups
from jupyter_gpumarket.broker.logs import Redactor
from jupyter_gpumarket.broker.machines import MachineMemory
from jupyter_gpumarket.broker.purse import Purse
from jupyter_gpumarket.broker.service import Parts, Service
from jupyter_gpumarket.broker.web import TokenBook
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Folders, Settings, write_private
from jupyter_gpumarket.errors import MissingCredentials
from jupyter_gpumarket.journal import Journal
from jupyter_gpumarket.leases import KeyStore, LeaseEngine, Policy
from jupyter_gpumarket.marketplaces import registry
from jupyter_gpumarket.marketplaces.http import is_loopback
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.offers import Catalogue, PriceBook, summed_up

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A composed broker: started once, closed once."""

    settings: Settings
    parts: Parts
    service: Service
    engine: LeaseEngine

    async def start(self) -> None:
        """Take up everything that the journal says is open."""
        for lease in self.parts.books.open_leases():
            self.parts.clusters.adopt(lease)
        await self.engine.start()

    async def aclose(self, timeout_s: float) -> None:
        """Stop acting and close; leases go on. What does not end in time is left to the end of the process."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.engine.aclose()
                await self.parts.clusters.aclose()
                for marketplace in self.parts.marketplaces.values():
                    await marketplace.aclose()
                await self.parts.catalogue.aclose()
        self.parts.prices.close()
        self.parts.journal.close()


def compose(folders: Folders, *, tokens: TokenBook, redactor: Redactor, url: str, stop: Callable[[], None]) -> Broker:
    """Make the broker of these folders.

    Raises:
        ConfigError: settings that cannot be read.
        JournalError: the journal cannot be opened.
    """
    settings = config.load_settings(folders)
    _learn_keys(settings, folders, redactor)
    clock = SystemClock()
    journal = Journal.open(settings.journal or f"sqlite:///{folders.journal_file}", clock)
    try:
        marketplaces = registry.build(settings, folders)
        prices = PriceBook(folders.state / "prices.sqlite")

        def listed(name: str, offers: Sequence[Offer]) -> None:
            now_ms = clock.now_ms()
            prices.note(summed_up(name, offers, now_ms), now_ms)

        catalogue = Catalogue(
            marketplaces,
            clock,
            journal.machines,
            records=MachineMemory(journal).records,
            readers=registry.readers(settings),
            listed=listed,
        )
        clusters = Clusters(
            folders=folders,
            clock=clock,
            tokens=tokens,
            redactor=redactor,
            broker_url=url,
            demos=_demos(settings),
            direct=settings.direct,
        )
        engine = LeaseEngine(
            store=journal,
            marketplaces=marketplaces,
            offers=catalogue,
            clusters=clusters,
            keys=KeyStore(folders.keys),
            clock=clock,
            rng=random.SystemRandom(),
            label_secret=_label_secret(folders),
            policy=Policy(idle_s=round(settings.idle_minutes * 60)),
        )
        books = Books(journal=journal, clock=clock)
        parts = Parts(
            folders=folders,
            clock=clock,
            journal=journal,
            marketplaces=marketplaces,
            skipped=registry.skipped(settings, folders),
            catalogue=catalogue,
            engine=engine,
            clusters=clusters,
            books=books,
            purse=Purse(books=books, engine=engine, clusters=clusters, clock=clock),
            closing=Closing(journal=journal, books=books, marketplaces=marketplaces, clock=clock),
            facts=FactIntake(store=journal, engine=engine, clock=clock),
            prices=prices,
            alerts=Alerts(book=prices, catalogue=catalogue, clock=clock),
            groups=Groups(store=journal, books=books, clusters=clusters, clock=clock),
            stop=stop,
        )
    except BaseException:
        journal.close()
        raise
    return Broker(settings=settings, parts=parts, service=Service(parts), engine=engine)


def _learn_keys(settings: Settings, folders: Folders, redactor: Redactor) -> None:
    """The log has to know every key, to keep it out."""
    for name in settings.marketplaces:
        with contextlib.suppress(MissingCredentials):
            redactor.learn(config.credential(name, folders).reveal())


def _demos(settings: Settings) -> frozenset[str]:
    """The marketplaces whose machines are part of a demo: the user says so, and they are on this very computer."""
    if not settings.demo_gpus:
        return frozenset()
    urls = {name: str(options.get("url", "")) for name, options in settings.marketplaces.items()}
    return frozenset(name for name, url in urls.items() if is_loopback(url))


def _label_secret(folders: Folders) -> bytes:
    """What marks our rentals as ours on a shared account. Lost with the state folder, like the journal itself."""
    path = folders.state / "label.secret"
    if not path.exists():
        write_private(path, secrets.token_bytes(32))
    content = path.read_bytes()
    assert len(content) == 32, f"{path} is damaged"
    os.chmod(path, 0o600)
    return content
