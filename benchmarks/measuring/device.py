"""The counters of the device that a rank runs on; sizes are in bytes."""

from __future__ import annotations

import torch


class Device:
    """A CPU: the program runs, times and counts parameters, and without a caching allocator every size is None."""

    place = "cpu"
    """The name torch knows it by."""

    @property
    def name(self) -> str:
        """The driver's name of the card."""
        return "cpu"

    def select(self) -> None:
        """Make it the current device, which creates its context."""

    def cap(self, cap_gib: float | None) -> None:
        """Bound what the caching allocator may reserve; None gives it the whole device."""

    def used(self) -> int | None:
        """What the driver counts as used, by everyone."""
        return None

    def allocated(self) -> int | None:
        """What tensors hold now."""
        return None

    def peak_allocated(self) -> int | None:
        """The most that tensors held since the last reset."""
        return None

    def peak_reserved(self) -> int | None:
        """The most that the caching allocator held since the last reset."""
        return None

    def reset_peaks(self) -> None:
        """Begin the peaks anew."""

    def give_back(self) -> None:
        """Return cached blocks to the driver."""

    def forget(self) -> None:
        """Return what libraries keep between runs, too, and begin every count anew."""

    def wait(self) -> None:
        """Until everything that was launched is done."""


class CudaDevice(Device):
    """One GPU, by the local rank that uses it."""

    def __init__(self, index: int) -> None:
        self._index = index
        self.place = f"cuda:{index}"

    @property
    def name(self) -> str:
        """See `Device`."""
        return str(torch.cuda.get_device_name(self._index))

    def select(self) -> None:
        """See `Device`."""
        torch.cuda.set_device(self._index)
        self.used()  # asking the driver creates the context, wherever setting the device did not

    def cap(self, cap_gib: float | None) -> None:
        """See `Device`."""
        _, total = torch.cuda.mem_get_info(self._index)
        fraction = 1.0 if cap_gib is None else cap_gib * 2**30 / total
        torch.cuda.set_per_process_memory_fraction(fraction, self._index)

    def used(self) -> int:
        """See `Device`."""
        free, total = torch.cuda.mem_get_info(self._index)
        return int(total - free)

    def allocated(self) -> int:
        """See `Device`."""
        return int(torch.cuda.memory_allocated())

    def peak_allocated(self) -> int:
        """See `Device`."""
        return int(torch.cuda.max_memory_allocated())

    def peak_reserved(self) -> int:
        """See `Device`."""
        return int(torch.cuda.max_memory_reserved())

    def reset_peaks(self) -> None:
        """See `Device`."""
        torch.cuda.reset_peak_memory_stats()

    def give_back(self) -> None:
        """See `Device`."""
        torch.cuda.empty_cache()

    def forget(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_accumulated_memory_stats()

    def wait(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize()


def device_of(local_rank: int) -> Device:
    """The GPU of this rank, or the CPU where there is none."""
    return CudaDevice(local_rank) if torch.cuda.is_available() else Device()
