"""Every error of the project, as one tree.

The type says what the caller may do: retry, not retry, look whether it happened, ask the user. The message says what
happened to which thing, and then what to do. No secret enters a message.

    GpuMarketError
    ├─ ConfigError              a setting is missing or wrong; names the setting
    │   └─ MissingCredentials
    ├─ BadRequest               what the user asked for cannot be read; names the field
    ├─ OfferError
    │   ├─ NoMatchingOffer      says which filter removed the last candidates
    │   └─ OfferGone            taken, or dearer, since it was listed
    ├─ MarketplaceError         carries the marketplace's name
    │   ├─ Temporary            may be tried again after `retry_after_s`
    │   ├─ Permanent            will fail again
    │   │   ├─ Unauthorized
    │   │   └─ InsufficientFunds
    │   └─ OutcomeUnknown       it may have happened; look for the label
    ├─ LeaseError
    │   ├─ InvalidTransition    our bug; carries the lease's story
    │   ├─ LeasesChanged        not as the caller saw them; nothing was done
    │   ├─ LeaseFailed          no offer led to a ready node
    │   └─ StillRunning         release not confirmed: money may still flow
    ├─ BudgetExceeded
    ├─ NodeError
    │   ├─ Unreachable
    │   ├─ HostKeyChanged
    │   ├─ CommandFailed        exit code and last lines
    │   ├─ VersionMismatch      names the package, both versions and the fix
    │   └─ NotAsSold            the probe found another machine than the offer said
    ├─ WireError                a peer broke the protocol; the connection ends
    ├─ PeerRestarted            the other end of a conversation is a new process; what was under way must be asked anew
    ├─ CodecError               a value has no codec, or bytes from a node are not what they claim
    ├─ JournalError
    │   ├─ JournalTooNew        written by a newer version
    │   ├─ JournalCorrupt
    │   ├─ JournalFull          the disk is full; nothing acknowledged is lost
    │   └─ JournalLocked        another broker has it
    ├─ BrokerUnavailable
    └─ RemoteError              a cell failed on the node; carries its traceback
        └─ MapErrors            items of a map failed; carries their numbers
"""

from __future__ import annotations


class GpuMarketError(Exception):
    """The root: everything this project raises on purpose."""


class ConfigError(GpuMarketError):
    """A setting is missing or wrong."""


class MissingCredentials(ConfigError):
    """No key for a marketplace; the message names where it is looked for."""


class BadRequest(GpuMarketError):
    """Input that cannot be read; the message names the field and what is accepted."""


class OfferError(GpuMarketError):
    """No offer can be rented."""


class NoMatchingOffer(OfferError):
    """Nothing fits; the message names the filter that removed the last candidates."""


class OfferGone(OfferError):
    """The offer was taken, or became dearer, since it was listed."""


class MarketplaceError(GpuMarketError):
    """A marketplace's API failed."""

    def __init__(self, marketplace: str, message: str) -> None:
        super().__init__(f"{marketplace}: {message}")
        self.marketplace = marketplace


class Temporary(MarketplaceError):
    """May work later. `retry_after_s` is the marketplace's own wish, where it told one."""

    def __init__(self, marketplace: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(marketplace, message)
        self.retry_after_s = retry_after_s


class Permanent(MarketplaceError):
    """Will fail again in the same way."""


class Unauthorized(Permanent):
    """The key was refused."""


class InsufficientFunds(Permanent):
    """The account's balance does not cover the rental."""


class OutcomeUnknown(MarketplaceError):
    """A call that costs money may have happened. Never retried blindly: the account is searched for the label."""


class LeaseError(GpuMarketError):
    """A lease cannot do what was asked."""


class InvalidTransition(LeaseError):
    """An event that the lease's state does not know: a bug of ours. Carries the lease's story."""

    def __init__(self, message: str, story: str = "") -> None:
        super().__init__(f"{message}\n{story}" if story else message)
        self.story = story


class LeasesChanged(LeaseError):
    """The leases are not as the caller saw them last; nothing was done. Look at them and choose again."""


class LeaseFailed(LeaseError):
    """No offer led to a ready node; the message tells what each try ended with."""


class StillRunning(LeaseError):
    """A release is not confirmed; the node may still bill. The message says where to stop it by hand."""


class BudgetExceeded(GpuMarketError):
    """The budget does not cover what was asked, or is used up."""


class NodeError(GpuMarketError):
    """Something on a node, or on the way to it, failed."""


class Unreachable(NodeError):
    """The node cannot be reached."""


class HostKeyChanged(NodeError):
    """The node answers with another host key than the recorded one."""


class CommandFailed(NodeError):
    """A command on a node ended with an error."""

    def __init__(self, message: str, *, exit_code: int | None = None, last_lines: str = "") -> None:
        super().__init__(f"{message} (exit code {exit_code})\n{last_lines}" if last_lines else message)
        self.exit_code = exit_code
        self.last_lines = last_lines


class VersionMismatch(NodeError):
    """Python or a package on the node does not fit the user's; the message names the difference and the fix."""


class NotAsSold(NodeError):
    """The probe found another machine than the offer promised."""


class WireError(GpuMarketError):
    """A peer broke the protocol: a frame too large, too deep, out of order, or of no known type."""


class PeerRestarted(GpuMarketError):
    """The other end of a conversation is another process than before; `boot_id` is the new one's."""

    def __init__(self, boot_id: str) -> None:
        super().__init__("the other end was restarted: what was under way there has to be asked for again")
        self.boot_id = boot_id


class CodecError(GpuMarketError):
    """A value that no codec takes, or bytes from a node that are not what their tag says."""


class JournalError(GpuMarketError):
    """The journal cannot be read or written."""


class JournalTooNew(JournalError):
    """The journal was written by a newer version of this package."""


class JournalCorrupt(JournalError):
    """The journal's content does not add up; nothing is rented until it is repaired."""


class JournalFull(JournalError):
    """The disk under the journal is full."""


class JournalLocked(JournalError):
    """Another broker holds the journal."""


class BrokerUnavailable(GpuMarketError):
    """The broker does not answer and could not be started."""


class RemoteError(GpuMarketError):
    """A cell failed on the node. `name`, `value` and `traceback` are the node's own words, cleaned for display."""

    def __init__(self, name: str, value: str, traceback: list[str] | None = None) -> None:
        super().__init__(f"{name}: {value}")
        self.name = name
        self.value = value
        self.traceback = traceback or []


class MapErrors(RemoteError):
    """Items of a map failed, after all others ended. `failed` has their numbers; `map_id` leads to everything."""

    def __init__(self, name: str, value: str, traceback: list[str] | None = None) -> None:
        super().__init__(name, value, traceback)
        self.map_id = ""
        self.failed: tuple[int, ...] = ()
