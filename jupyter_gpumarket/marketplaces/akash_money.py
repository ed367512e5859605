"""Akash's money: uact for each block, made dollars an hour by a block time that is recorded with every price. Pure."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from jupyter_gpumarket.errors import ConfigError, Temporary
from jupyter_gpumarket.marketplaces.akash_replies import UACT, UACT_PER_DOLLAR, Coin, Holding, LeaseRow
from jupyter_gpumarket.marketplaces.dollars import amount_nusd, price_nusd
from jupyter_gpumarket.models import Balance, MarketCharge, NativePrice

NAME = "akash"
# With this the Console itself makes dollars an hour of a bid.
CONSOLE_BLOCK_S = Decimal(6)
HOUR_S = 3600
# Nobody keeps so many dollars there; so a whole number from here on is in uact.
SURELY_UACT = 100_000


class BlockTime:
    """How long a block takes, by setting: the chain has no price for an hour.

    Raises:
        ConfigError: it is no sensible number of seconds.
    """

    def __init__(self, seconds: str) -> None:
        try:
            self.seconds = Decimal(seconds)
        except InvalidOperation:
            self.seconds = Decimal(0)
        if not self.seconds.is_finite() or not 1 <= self.seconds <= 60:
            raise ConfigError(f"akash: block_s must be seconds as text, such as '5.883', not {seconds!r}")

    def uact_hour(self, price: Coin) -> Decimal:
        """What a bid costs an hour, in uact.

        Raises:
            Temporary: it is in another coin, whose worth in dollars nobody tells here.
        """
        if price.denom != UACT:
            raise Temporary(NAME, f"a price in {price.denom[:20]!r} where {UACT} belongs")
        if not price.amount.is_finite() or not 0 <= price.amount < 10**15:
            raise Temporary(NAME, f"it told {str(price.amount)[:40]!r} where an amount of money belongs")
        return price.amount * HOUR_S / self.seconds

    def nusd_hour(self, price: Coin) -> int:
        """A bid in nano-dollars an hour."""
        return price_nusd(NAME, self.uact_hour(price) / UACT_PER_DOLLAR)

    def uact(self, nusd_hour: int) -> Decimal:
        """The bid that costs so much."""
        return Decimal(nusd_hour) * UACT_PER_DOLLAR / 10**9 * self.seconds / HOUR_S

    def from_console(self, usd_hour: Decimal) -> Decimal:
        """Dollars an hour as they really are, of what the Console calculated with a round block time."""
        return usd_hour * CONSOLE_BLOCK_S / self.seconds

    def native(self, price: Coin, now_ms: int) -> NativePrice:
        """A bid in its own unit, and how it became dollars."""
        return NativePrice(
            amount_hour=f"{self.uact_hour(price):.6f}",
            currency=UACT,
            rate=str(Decimal(1) / UACT_PER_DOLLAR),
            source=f"1 ACT is pegged to 1 USD; {self.seconds} s a block (setting block_s)",
            rate_ms=now_ms,
        )


def bill(
    holding: Holding, lease: LeaseRow, *, owed_blocks: int, start_ms: int, end_ms: int, final: bool
) -> MarketCharge:
    """What a deployment's escrow has paid, and what it owes for blocks that are not settled yet."""
    if any(coin.denom != UACT for coin in (lease.price, *(holding.escrow_account.state.transferred or ()))):
        raise Temporary(NAME, f"deployment {holding.dseq} is billed in another coin than {UACT}")
    paid = sum((coin.amount for coin in holding.escrow_account.state.transferred or ()), Decimal(0))
    amount = paid + lease.price.amount * owed_blocks
    return MarketCharge(
        charge_id=f"{holding.dseq}-escrow",
        rental_id=holding.dseq,
        amount_nusd=amount_nusd(NAME, amount / UACT_PER_DOLLAR),
        start_ms=start_ms,
        end_ms=end_ms,
        native_amount=str(amount),
        native_currency=UACT,
        final=final,
    )


def plain_balance(told: Decimal, unit: str) -> Balance:
    """The Console's code says that balances are uact, its documentation that they are dollars."""
    is_uact = unit == "uact" or (unit == "auto" and told == told.to_integral_value() and told >= SURELY_UACT)
    dollars = told / UACT_PER_DOLLAR if is_uact else told
    return Balance(
        amount_nusd=amount_nusd(NAME, dollars), native_amount=str(told), native_currency=UACT if is_uact else "USD"
    )
