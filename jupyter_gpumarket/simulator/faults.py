"""What can be made to go wrong in a stand-in, and how often."""

from __future__ import annotations

from enum import StrEnum

from jupyter_gpumarket.models import Record


class Fault(StrEnum):
    """One kind of trouble. Those of one call are used up call by call; those of a rental, rental by rental."""

    SOLD_TWICE = "sold_twice"
    LOST_BEFORE_CREATE = "lost_before_create"
    LOST_AFTER_CREATE = "lost_after_create"
    ERROR_AFTER_CREATE = "error_after_create"
    PREEMPTED = "preempted"
    RECLAIMED = "reclaimed"
    DIES_BOOTING = "dies_booting"
    DEARER = "dearer"
    WRONG_GPU = "wrong_gpu"
    STATUS_LIES = "status_lies"
    BILLS_ON = "bills_on"
    TOO_MANY_CALLS = "too_many_calls"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"


WORDS = {
    Fault.SOLD_TWICE: "the next create finds that somebody else took the offer",
    Fault.LOST_BEFORE_CREATE: "the next create call is cut off, and nothing was rented",
    Fault.LOST_AFTER_CREATE: "the next create call is cut off, and it was rented all the same",
    Fault.ERROR_AFTER_CREATE: "the next create call ends in 503, and it was rented all the same",
    Fault.PREEMPTED: "the next machine that runs is taken away again",
    Fault.RECLAIMED: "the next machine is taken away while it is used, with notice where the marketplace gives any",
    Fault.DIES_BOOTING: "the next machine never comes up",
    Fault.DEARER: "the next rental costs half as much again as was listed",
    Fault.WRONG_GPU: "machines are listed with a GPU that they do not have",
    Fault.STATUS_LIES: "the next rental is told to run at once, while nothing answers there",
    Fault.BILLS_ON: "the next release is confirmed, and the machine runs and bills on",
    Fault.TOO_MANY_CALLS: "the next call is refused with 429",
    Fault.SERVER_ERROR: "the next call ends in 500",
    Fault.MALFORMED: "the next call is answered by something else",
}


class Arming(Record, frozen=True, kw_only=True):
    """A wish for trouble: `times` of None is until it is set to 0."""

    fault: Fault
    times: int | None = 1


class FaultBoard:
    """The faults that are armed in one stand-in."""

    def __init__(self) -> None:
        self._left: dict[Fault, int | None] = {}

    def arm(self, arming: Arming) -> None:
        """Switch one on, for so many times, or off with 0."""
        if arming.times == 0:
            self._left.pop(arming.fault, None)
        else:
            self._left[arming.fault] = arming.times

    def is_armed(self, fault: Fault) -> bool:
        """Whether it would happen, without using it up."""
        return fault in self._left

    def take(self, fault: Fault) -> bool:
        """Whether it happens now; uses it up by one."""
        if fault not in self._left:
            return False
        left = self._left[fault]
        if left is not None:
            self.arm(Arming(fault=fault, times=left - 1))
        return True

    def armed(self) -> dict[str, int | None]:
        """What is armed, and how often it will still happen."""
        return {fault.value: left for fault, left in self._left.items()}
